"""How many values a method would train in a model, from the model's structure alone."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from deltafit.adapters.injection import check_fits
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.places import view_for
from deltafit.adapters.seeding import generator_for
from deltafit.methods import Layer, LayerMethod, Method


def trained_values(model: nn.Module, method: Method, *, head: Sequence[str]) -> int:
    """Return how many values a method trains in ``model``, the head apart.

    Args:
        model: without adapters; the meta device will do.
        method: what would be trained.
        head: names of the parameters that make up the head.

    Raises:
        DeltafitError: the method does not fit the model.
    """
    targets, replaced = check_fits(model, method, head=head)
    count = sum(model.get_parameter(name).numel() for name in replaced if name not in head)
    for name in targets:
        assert isinstance(method, LayerMethod)
        count += _in_layer(method.for_module(name), _Empty.of(view_for(model, name, method)))
    return count


class _Empty(Layer):
    """A layer of some shape with zeros for its weight: counting needs no values.

    Args:
        inputs: features, or tokens of a lookup.
        outputs: features.
        lookup: whether it is an embedding.
        groups: of a convolution's channels.
        window: what its kernel covers of a channel.
        has_bias: whether it has a bias.
    """

    convolution = training = False

    def __init__(
        self, inputs: int, outputs: int, *, lookup: bool, groups: int, window: int, has_bias: bool
    ) -> None:
        self.inputs, self.outputs, self.lookup = inputs, outputs, lookup
        self.groups, self.window = groups, window
        self.bias = torch.zeros(outputs) if has_bias else None
        self._key = (inputs, outputs, lookup, groups, window, has_bias)

    @classmethod
    def of(cls, view: ModuleView) -> "_Empty":
        """Return one of the shape of a view."""
        return cls(
            view.inputs, view.outputs, lookup=view.lookup, groups=view.groups, window=view.window,
            has_bias=view.bias is not None,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Empty) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def view(self) -> Tensor:
        """Return zeros in the shape of the weight's view."""
        shape = (self.inputs, self.outputs) if self.lookup else (self.outputs, self.inputs)
        return torch.zeros(shape)


@lru_cache(maxsize=256)
def _in_layer(method: LayerMethod, layer: _Empty) -> int:
    tensors = method.initialise(layer, lambda name: generator_for(0, name))
    frozen = method.frozen_tensors(layer)
    return sum(tensor.numel() for name, tensor in tensors.items() if name not in frozen)
