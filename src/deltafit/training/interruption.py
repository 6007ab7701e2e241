"""Stopping at a step's end when the person presses Ctrl-C or the system asks."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deltafit.errors import DeltafitError


class Interrupted(DeltafitError):  # noqa: N818  # it is no error that the person asked to stop
    """The person asked to stop; the run can be resumed."""


class Halted(DeltafitError):  # noqa: N818  # it is no error that a run has shown enough
    """Whoever began the run has seen enough of it; a checkpoint was written."""


class StopRequest:
    """Set by a signal; asked for between steps, when parameters and optimiser agree."""

    def __init__(self) -> None:
        self._set = False

    def __call__(self) -> bool:
        """Return whether a stop was asked for."""
        return self._set

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Ask for a stop; a second Ctrl-C stops at once."""
        if self._set:
            raise KeyboardInterrupt
        self._set = True


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request within the block.

    Raises:
        Interrupted: something else ended the block before the request was heeded.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread alone
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request.ask) for number in numbers}
    try:
        yield request
    except Interrupted:
        raise
    except Exception as error:
        if request():  # or whoever expects that error would go on
            raise Interrupted("Stopped.") from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
