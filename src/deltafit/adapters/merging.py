"""Merging an adapter into the weights, and taking it out again to the very bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from deltafit.adapters.layers import layer_state
from deltafit.adapters.model import forget_adapters, model_adapters, moved_like
from deltafit.adapters.quantising import dequantise
from deltafit.errors import DeltafitError
from deltafit.methods import Insertion


def merge(model: nn.Module) -> None:
    """Add the active adapter's Δ to the weights, so that the model runs at the base's speed.

    The sums are taken in float32 or better. The original parameters are kept aside: subtracting Δ
    again would not give their bits back. A quantised weight gives way to a dense one. A weight tied
    to another is untied, since only this module's use of it was adapted.

    Raises:
        DeltafitError: no adapter is active, it is merged already, it is an insertion, or a weight
            is no parameter any more; nothing is changed then.
    """
    state = model_adapters(model)
    if state.active is None:
        raise DeltafitError("No adapter is active, so there is nothing to merge.")
    if state.merged is not None:
        raise DeltafitError(f"The adapter {state.active!r} is merged already.")
    refuse_insertion(model)
    device = next(model.parameters()).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        merged = {
            target: layer.view.changed(layer.deltas(state.active))
            for target in state.adapters[state.active].targets
            for layer in (layer_state(model.get_submodule(target)),)
        }
    # Everything is looked up before anything is replaced: half a merge could not be undone.
    originals = {
        f"{target}.{leaf}": _plain(model.get_submodule(target), target, leaf)
        for target, values in merged.items()
        for leaf in values
    }
    for target, values in merged.items():
        module = model.get_submodule(target)
        for leaf, value in values.items():
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        layer_state(module).active = None
    state.merged = originals


def refuse_insertion(model: nn.Module) -> None:
    """Raise a DeltafitError if the active adapter adds computation: it is no change of weights."""
    state = model_adapters(model)
    method = state.adapters[state.active].method if state.active is not None else None
    if isinstance(method, Insertion):
        raise DeltafitError(
            f"The adapter {state.active!r} cannot be merged: {method.command_line_name} adds "
            "computation to the model, which no weights of the base could do. Use it unmerged, "
            "with its base."
        )


@torch.no_grad()
def lost_to_rounding(model: nn.Module) -> float:
    """Return the share of ‖Δ‖² that merging the active adapter loses, 0 to 1.

    A sum has no more digits than the weight, so of a Δ that is small beside it the last are lost.
    Replacements have no Δ and lose nothing.
    """
    state = model_adapters(model)
    energy = lost = 0.0
    assert state.active is not None and state.merged is None
    for target in state.adapters[state.active].targets:
        layer = layer_state(model.get_submodule(target))
        deltas = layer.deltas(state.active)
        for leaf, value in layer.view.changed(deltas).items():
            change = layer.view.to_parameter(deltas[leaf]) if leaf == "weight" else deltas[leaf]
            added = value.double() - layer.view.parameter(leaf).double()
            energy += float(change.double().square().sum())
            lost += float((added - change.double()).square().sum())
    return lost / energy if energy > 0 else 0.0


def _plain(module: nn.Module, name: str, leaf: str) -> nn.Parameter:
    parameter = module._parameters.get(leaf)
    if parameter is None:
        raise DeltafitError(
            f"{name}.{leaf} is computed from other tensors since the adapter came (by a "
            "parametrisation or pruning), so nothing can be merged into it. Make that permanent "
            "first."
        )
    return parameter


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
        module._parameters[leaf] = moved_like(original, model.get_parameter(name))
        layer_state(module).active = state.active
    state.merged = None


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge the active adapter within the block.

    Raises:
        DeltafitError: as ``merge``; nothing is changed then.
    """
    merge(model)
    try:
        yield
    finally:
        unmerge(model)


def merge_and_unload(model: nn.Module) -> None:
    """Merge the active adapter for good: the model is plain again and knows nothing of adapters.

    Every other adapter is dropped, and quantised layers become dense, with the rounded values that
    they computed with. Where a tied weight was untied, the configuration of a
    transformers model says so, or loading it again would tie the two.
    """
    state = model_adapters(model)
    if state.merged is None:
        merge(model)
    standing = {id(parameter) for parameter in model.parameters()}
    untied = any(id(original) in standing for original in (state.merged or {}).values())
    config: Any = getattr(model, "config", None)
    if untied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
    forget_adapters(model)
    dequantise(model)
