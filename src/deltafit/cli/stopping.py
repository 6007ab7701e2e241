"""How SIGTERM stops a command: as Ctrl-C does, until the command has begun to say how it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def stop_when_terminated() -> None:
    """Stop as Ctrl-C does, so that what is half-written goes; training has a way of its own."""
    signal.signal(signal.SIGTERM, _stop)


@contextmanager
def last_words() -> Iterator[None]:
    """Let what is said within the block be said whole, and once.

    A launcher that sees one process fail terminates the others, which are ending already: a signal
    would cut the sentence or add a second one. After the block it ends the process in silence.
    """
    if signal.getsignal(signal.SIGTERM) is not _stop:
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
