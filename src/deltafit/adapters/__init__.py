"""Where an adapter sits: select targets, inject, switch, merge, save and load."""

from deltafit.adapters.counting import trained_values
from deltafit.adapters.injection import adapt, check_fits
from deltafit.adapters.layers import is_adapted, layer_state, view_of
from deltafit.adapters.merging import merge, merge_and_unload, merged, unmerge
from deltafit.adapters.model import (
    Adapter,
    activate,
    adapter_tensors,
    base_parameters,
    disabled,
    frozen_tensors,
    model_adapters,
    rate_factors,
    remove_adapter,
    step_hook,
    trained_tensors,
)
from deltafit.adapters.quantising import (
    QUANTISED,
    base_sizes,
    dequantise,
    quantisable,
    quantisation_of,
    quantise,
)
from deltafit.adapters.saving import (
    StoredAdapter,
    fill_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
)
from deltafit.adapters.seeding import generator_for, keyed_seed
from deltafit.adapters.targets import select_targets

__all__ = [
    "QUANTISED",
    "Adapter",
    "StoredAdapter",
    "activate",
    "adapt",
    "adapter_tensors",
    "base_parameters",
    "base_sizes",
    "check_fits",
    "dequantise",
    "disabled",
    "fill_adapter",
    "frozen_tensors",
    "generator_for",
    "is_adapted",
    "keyed_seed",
    "layer_state",
    "load_adapter",
    "merge",
    "merge_and_unload",
    "merged",
    "model_adapters",
    "quantisable",
    "quantisation_of",
    "quantise",
    "rate_factors",
    "read_adapter",
    "remove_adapter",
    "save_adapter",
    "select_targets",
    "step_hook",
    "trained_tensors",
    "trained_values",
    "unmerge",
    "view_of",
]
