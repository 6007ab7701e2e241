"""Merging an adapter into the weights, and taking it out again to the very bits."""

from torch import nn

from deltafit.adapters.layers import layer_state
from deltafit.adapters.model import forget_adapters, model_adapters
from deltafit.errors import DeltafitError


def merge(model: nn.Module) -> None:
    """Add the active adapter's Δ to the weights, so that the model runs at the base's speed.

    The sums are taken in float32 or better. The original parameters are kept aside: subtracting Δ
    again would not give their bits back. A weight tied to another is untied, since only this
    module's use of it was adapted.

    Raises:
        DeltafitError: no adapter is active, or it is merged already.
    """
    state = model_adapters(model)
    if state.active is None:
        raise DeltafitError("No adapter is active, so there is nothing to merge.")
    if state.merged is not None:
        raise DeltafitError(f"The adapter {state.active!r} is merged already.")
    originals: dict[str, nn.Parameter] = {}
    for target in state.adapters[state.active].targets:
        module = model.get_submodule(target)
        layer = layer_state(module)
        for leaf, value in layer.view.changed(layer.deltas(state.active)).items():
            original = module._parameters[leaf]
            assert original is not None
            originals[f"{target}.{leaf}"] = original
            module._parameters[leaf] = nn.Parameter(value.detach(), requires_grad=False)
        layer.active = None
    state.merged = originals


def unmerge(model: nn.Module) -> None:
    """Put the original parameters back, bit for bit; the adapter is active again.

    Raises:
        DeltafitError: no adapter is merged.
    """
    state = model_adapters(model)
    if state.active is None or state.merged is None:
        raise DeltafitError("No adapter is merged, so there is nothing to unmerge.")
    for name, original in state.merged.items():
        target, _, leaf = name.rpartition(".")
        module = model.get_submodule(target)
        module._parameters[leaf] = original
        layer_state(module).active = state.active
    state.merged = None


def merge_and_unload(model: nn.Module) -> None:
    """Merge the active adapter for good: the model is plain again and knows nothing of adapters.

    Every other adapter is dropped.
    """
    if model_adapters(model).merged is None:
        merge(model)
    forget_adapters(model)
