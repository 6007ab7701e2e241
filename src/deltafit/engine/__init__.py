"""Speed without other results: packed batches, many adapters in one pass, frozen layers once.

And with other rounding, where that is asked for or measured: frozen products and
attention in bf16.
"""

from deltafit.engine.calls import evaluating
from deltafit.engine.checking import check_packing, find_reading
from deltafit.engine.dropout import bulk_dropout
from deltafit.engine.frozen import check_products, frozen_products, reduced_products
from deltafit.engine.layout import CannotPackError
from deltafit.engine.mixed import mixed
from deltafit.engine.mixed_checking import check_mixing
from deltafit.engine.packing import is_packed, packed
from deltafit.engine.precision import ProductPrecision, probe_attention, probe_precision
from deltafit.engine.prefix import CannotFeedError, FrozenPrefix, find_prefix
from deltafit.engine.reading import KeysAndValues, find_keys_and_values, first_tokens
from deltafit.engine.reduced_attention import (
    attention_shape,
    check_attention,
    reduced_attention,
)
from deltafit.engine.states import MEMORY_LIMIT, StateStore, StateStores

__all__ = [
    "MEMORY_LIMIT",
    "CannotFeedError",
    "CannotPackError",
    "FrozenPrefix",
    "KeysAndValues",
    "ProductPrecision",
    "StateStore",
    "StateStores",
    "attention_shape",
    "bulk_dropout",
    "check_attention",
    "check_mixing",
    "check_packing",
    "check_products",
    "evaluating",
    "find_keys_and_values",
    "find_prefix",
    "find_reading",
    "first_tokens",
    "frozen_products",
    "is_packed",
    "mixed",
    "packed",
    "probe_attention",
    "probe_precision",
    "reduced_attention",
    "reduced_products",
]
