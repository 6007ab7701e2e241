"""A module as methods see it: what the views of all layer types have in common."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from deltafit.adapters.update import LowRankUpdate
from deltafit.methods import Layer


class ModuleView(Layer):
    """A module as methods see it; one subclass a layer type says how it differs.

    Attributes:
        module: the module itself.
        plain: whether it computes what its layer type does. A subclass with a forward of its own
            (an embedding that scales its rows) may not, and a method's fast path does not know.
        alone: within it the module computes what it would without adapters.
        dropping: how elements of an adapter's input are dropped in training: x and probability.
    """

    lookup = False
    convolution = False
    groups = 1
    window = 1

    def __init__(self, module: nn.Module, plain: bool) -> None:
        self.module = module
        self.plain = plain
        self.alone: Callable[[], AbstractContextManager[None]] = nullcontext
        self.dropping: Callable[[Tensor, float], Tensor] = functional.dropout

    @property
    def training(self) -> bool:  # type: ignore[override]  # a protocol's attribute, read only here
        """Whether the module is in training mode."""
        return self.module.training

    @abstractmethod
    def to_parameter(self, view: Tensor) -> Tensor:
        """Return a tensor of the weight's view in the layout of the weight itself."""

    def view(self) -> Tensor:
        """Return the weight in the view's layout. Transposing is its own inverse."""
        return self.to_parameter(self.parameter("weight"))

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read only, as ``training``
        """The module's bias, ``[outputs]``, if it has one."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def parameter(self, name: str) -> Tensor:
        """Return a parameter as the module computes with it."""
        parameter = getattr(self.module, name)
        assert isinstance(parameter, Tensor)
        return parameter

    def by_feature(self, vector: Tensor) -> Tensor:
        """Return ``vector``, a number a feature, in the shape that multiplies x or y so."""
        return vector

    def products(self, x: Tensor) -> Tensor:
        """Return what the weight is multiplied by when the module is called with ``x``.

        Returns:
            ``[products, inputs]``.
        """
        return x.reshape(-1, x.shape[-1])

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left @ right``, ``[outputs, inputs]``."""
        return left @ right

    def drop(self, x: Tensor, p: float) -> Tensor:
        """Return ``x``, in training with elements dropped with probability ``p``."""
        return self.dropping(x, p) if p and self.training else x

    def lowered(self, x: Tensor, right: Tensor) -> Tensor:
        """Return ``right · x``, ``[..., rank]``, for ``x`` of ``[..., inputs]``."""
        return functional.linear(x, right)

    def add_low_rank(
        self, y: Tensor, x: Tensor, right: Tensor, left: Tensor, factor: float
    ) -> Tensor:
        """Return ``y + factor · left · right · x`` in y's dtype."""
        product = self._is_product_cheaper(y, len(right))
        # Autocast computes products, and so would round y itself, in the lower precision.
        mixed = not y.dtype == right.dtype == left.dtype or torch.is_autocast_enabled(y.device.type)
        apart = mixed or y.dim() < 2 or y.is_nested
        if not (product or apart or self.lookup):
            rows = (y.flatten(0, -2), x.flatten(0, -2))
            learns = torch.is_grad_enabled() and any(t.requires_grad for t in (*rows, right, left))
            # Where nothing learns, the same operators without a node, which can be traced too.
            update = LowRankUpdate.apply if learns else LowRankUpdate.forward
            updated: Tensor = update(*rows, right, left, factor)[0]
            return updated.view_as(y)
        if product:
            low, left = x, factor * (left @ right)
        else:
            # The factor goes where the numbers are fewest.
            low = factor * self.lowered(x, right)
        if apart:
            return y + functional.linear(low, left).to(y.dtype)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), left.T).view_as(y)

    def _is_product_cheaper(self, y: Tensor, rank: int) -> bool:
        """Return whether left · right, and then x, takes fewer multiplications than x first.

        In the backward pass the same order is the cheaper one. Without groups, and up to a rank of
        inputs · outputs / (inputs + outputs), it never is: half of a square matrix's width.
        """
        if self.lookup:
            return False
        positions, both = y.numel() // self.outputs, self.inputs * self.outputs
        # right multiplies what each group takes, and left gives all outputs.
        apart = rank * positions * (self.groups * self.inputs + self.outputs)
        return apart > both * (rank + positions)

    def changed(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``{parameter name: parameter + Δ}`` in the parameters' layout and dtype.

        The sum is taken in float32 or better and rounded once.
        """
        result = {}
        for name, delta in deltas.items():
            base = self.parameter(name)
            wide = torch.promote_types(base.dtype, delta.dtype)
            change = self.to_parameter(delta) if name == "weight" else delta
            result[name] = (base.to(wide) + change.to(wide)).to(base.dtype)
        return result

    def forward_with(self, deltas: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with its parameters changed: the law's right-hand side.

        A person's hooks on the layer belong to its own call, and do not run again.
        """
        changed = {f"layer.{name}": value for name, value in self.changed(deltas).items()}
        with self.alone():
            output = functional_call(_Forward(self.module), changed, args, kwargs)
        assert isinstance(output, Tensor)
        return output


class _Forward(nn.Module):
    """A layer's forward alone, without its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's forward returns."""
        return self.layer.forward(*args, **kwargs)
