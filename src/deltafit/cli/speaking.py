"""Which of several processes that were launched together speaks: one, whichever of them fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

_TOLD = "deltafit has told why it ends"
_FOR_THE_FIRST = timedelta(seconds=5)


def is_first() -> bool:
    """Return whether this is the process that speaks for all as long as nothing fails."""
    return os.environ.get("RANK", "0") == "0"


def launched_together() -> bool:
    """Return whether there are others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def telling() -> Iterator[bool]:
    """Give whether this process is to tell, within the block, why it ends.

    What fails in all processes the first one tells, which the others give some seconds for. What
    fails in one of the others that one tells, and then the rest end in silence.
    """
    store = _store() if launched_together() else None
    if store is None:
        yield is_first()
        return
    told = _is_told(store)
    yield not told
    if not told:
        with suppress(RuntimeError):
            store.set(_TOLD, "yes")


def lost_another(error: Exception) -> bool:
    """Return whether an error is what is left of a process launched together with this one."""
    if not launched_together():
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def _is_told(store: Any) -> bool:
    from torch.distributed import DistError, DistStoreError

    try:
        if is_first():
            return bool(store.check([_TOLD]))
        store.wait([_TOLD], _FOR_THE_FIRST)
    except DistStoreError:
        return False
    except DistError:
        pass  # it was the first one's, which has ended
    return True


def _store() -> Any:
    """Return what processes launched together have in common; None if it cannot be reached."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented there

    try:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=_FOR_THE_FIRST,
        )
    except (KeyError, ValueError, RuntimeError):
        return None
