"""Speed without other results: packed batches, many adapters in one pass, frozen layers once."""

from deltafit.engine.checking import check_packing
from deltafit.engine.dropout import bulk_dropout
from deltafit.engine.layout import CannotPackError
from deltafit.engine.mixed import mixed
from deltafit.engine.packing import packed
from deltafit.engine.prefix import FrozenPrefix, find_prefix
from deltafit.engine.states import StateStore

__all__ = [
    "CannotPackError",
    "FrozenPrefix",
    "StateStore",
    "bulk_dropout",
    "check_packing",
    "find_prefix",
    "mixed",
    "packed",
]
