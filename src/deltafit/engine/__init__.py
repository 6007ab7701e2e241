"""Speed without other results: packed batches, dropout in bulk, frozen layers computed once."""

from deltafit.engine.calls import evaluating
from deltafit.engine.checking import check_packing
from deltafit.engine.dropout import bulk_dropout
from deltafit.engine.layout import CannotPackError
from deltafit.engine.packing import is_packed, packed
from deltafit.engine.prefix import FrozenPrefix, find_prefix
from deltafit.engine.states import StateStore

__all__ = [
    "CannotPackError",
    "FrozenPrefix",
    "StateStore",
    "bulk_dropout",
    "check_packing",
    "evaluating",
    "find_prefix",
    "is_packed",
    "packed",
]
