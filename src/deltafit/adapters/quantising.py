"""Putting a model's frozen linear layers into few bits, and taking them out again."""

import math
from collections.abc import Collection
from importlib.util import find_spec

from torch import Tensor, nn

from deltafit.adapters.model import base_parameters, model_adapters
from deltafit.adapters.quantised import Int8Linear, NF4Linear, Quantisation, QuantisedLinear
from deltafit.adapters.structure import layer_shape, repeated_blocks
from deltafit.errors import DeltafitError

QUANTISED: dict[Quantisation, type[QuantisedLinear]] = {
    layer.kind: layer for layer in (Int8Linear, NF4Linear)
}


def quantise(
    model: nn.Module, kind: Quantisation, *, errors_of: Collection[str] = ()
) -> dict[str, dict[str, Tensor]]:
    """Store the weights of the linear layers in the repeated blocks in few bits, in place.

    They are frozen from then on. Embeddings, norms, biases, the head, GPT-2's ``Conv1D`` and
    layers with a forward of their own keep their values. It goes layer by layer, so that beside
    the checkpoint's mapped file, which the system can drop, only one layer is there twice.

    Args:
        model: with its values loaded, and no adapter on it.
        kind: int8, or nf4 for 4-bit NormalFloat.
        errors_of: names of modules of which it is to be told what rounding takes, for a method that
            makes up for that; it needs the memory of their weights in float32.

    Returns:
        For each of those that is quantised, ``error``: its weight less the rounded one, in float32
        on the CPU. ``adapt`` takes it as ``statistics``.

    Raises:
        DeltafitError: the library is missing, the model has adapters already, or it has no layer
            that can be quantised.
    """
    if model_adapters(model).adapters:
        raise DeltafitError("The model carries adapters already. Quantise first, then adapt it.")
    errors = {}
    for name in quantisable(model):
        layer: nn.Module = model.get_submodule(name)
        weight = layer.get_parameter("weight").detach()
        layer.__class__ = QUANTISED[kind]
        assert isinstance(layer, QuantisedLinear)
        layer.quantise()
        if name in errors_of:
            errors[name] = {"error": (weight.float() - layer.dense().detach()).cpu()}
    # Tensors of a checkpoint lie in its mapped file, which stays in memory whole while one does.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.clone()
    return errors


def quantisable(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that ``quantise`` would change; the meta device will do.

    Raises:
        DeltafitError: the library that quantises is not installed, or there are no such modules.
    """
    if find_spec("bitsandbytes") is None:
        raise DeltafitError(
            "Base weights in int8 or nf4 need the package bitsandbytes: "
            "pip install 'deltafit[quantised]'."
        )
    stacks = repeated_blocks(model)
    names = tuple(
        name
        for name, module in model.named_modules()
        # By the very class: a subclass may compute something else, or have its weight read.
        if type(module) is nn.Linear
        and module.in_features % 2 == 0  # two weights share a byte, and rows begin with a new one
        and any(stack.index_of(name) is not None for stack in stacks)
    )
    if not names:
        raise DeltafitError(
            f"{type(model).__name__} has no linear layers in its blocks whose weights could be "
            "stored in int8 or nf4 (GPT-2's Conv1D is none). Leave the base weights in float32."
        )
    return names


def dequantise(model: nn.Module) -> None:
    """Make quantised layers plain again, in place, with the values that they were rounded to."""
    for layer in model.modules():
        if isinstance(layer, QuantisedLinear):
            layer.weight = nn.Parameter(layer.dense().detach(), requires_grad=False)
            del layer.statistics
            plain: nn.Module = layer
            plain.__class__ = nn.Linear


def quantisation_of(model: nn.Module) -> Quantisation | None:
    """Return how the model's base weights are stored; None where they are as they were loaded."""
    layers = (module for module in model.modules() if isinstance(module, QuantisedLinear))
    return next((layer.kind for layer in layers), None)


def base_sizes(model: nn.Module) -> dict[str, int]:
    """Return how many values each base parameter has, however many of them share a byte."""
    sizes = {}
    for name, parameter in base_parameters(model).items():
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        packed = isinstance(module, QuantisedLinear) and leaf == "weight"
        sizes[name] = math.prod(layer_shape(module)) if packed else parameter.numel()
    return sizes
