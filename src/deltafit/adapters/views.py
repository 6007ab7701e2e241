"""The layer types an adapter can sit in, each as one view of its weight."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter

from deltafit.adapters.quantised import QuantisedLinear
from deltafit.errors import DeltafitError
from deltafit.methods import Layer


class ModuleView(Layer):
    """A module as methods see it; one subclass a layer type says how it differs.

    Attributes:
        module: the module itself.
        plain: whether it computes what its layer type does. A subclass with a forward of its own
            (an embedding that scales its rows) may not, and a method's fast path does not know.
        alone: within it the module computes what it would without adapters.
    """

    lookup = False

    def __init__(self, module: nn.Module, plain: bool) -> None:
        self.module = module
        self.plain = plain
        self.alone: Callable[[], AbstractContextManager[None]] = nullcontext

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

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left @ right``, ``[outputs, inputs]``."""
        return left @ right

    def lowered(self, x: Tensor, right: Tensor) -> Tensor:
        """Return ``right · x``, ``[..., rank]``, for ``x`` of ``[..., inputs]``."""
        return functional.linear(x, right)

    def add_low_rank(
        self, y: Tensor, x: Tensor, right: Tensor, left: Tensor, factor: float
    ) -> Tensor:
        """Return ``y + factor · left · right · x`` in y's dtype."""
        if self._is_product_cheaper(x, len(right)):
            low, left = x, factor * (left @ right)
        else:
            # The factor goes where the numbers are fewest.
            low = factor * self.lowered(x, right)
        mixed = not y.dtype == low.dtype == left.dtype
        # Autocast computes addmm, and so would round y itself, in the lower precision.
        if mixed or y.dim() < 2 or y.is_nested or torch.is_autocast_enabled(y.device.type):
            return y + functional.linear(low, left).to(y.dtype)
        # One pass over y instead of three: the update is never a tensor of its own.
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), left.T).view_as(y)

    def _is_product_cheaper(self, x: Tensor, rank: int) -> bool:
        """Return whether left · right, and then x, takes fewer multiplications than x first.

        In the backward pass the same order is the cheaper one. Up to a rank of inputs · outputs /
        (inputs + outputs) it never is: half of a square matrix's width.
        """
        if self.lookup:
            return False
        tokens, both = x.numel() // self.inputs, self.inputs * self.outputs
        return rank * tokens * (self.inputs + self.outputs) > both * (rank + tokens)

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
        """Return the layer's output with its parameters changed: the law's right-hand side."""
        with self.alone():
            output = functional_call(self.module, self.changed(deltas), args, kwargs)
        assert isinstance(output, Tensor)
        return output


class LinearView(ModuleView):
    """``nn.Linear``: the weight is ``[outputs, inputs]`` as it stands."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module, type(module).forward is nn.Linear.forward)
        self.inputs, self.outputs = module.in_features, module.out_features

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` as it is."""
        return view


class QuantisedView(LinearView):
    """A quantised linear layer: the weight is the dequantised one, and so is what Δ is added to."""

    def __init__(self, module: QuantisedLinear) -> None:
        super().__init__(module)
        self.plain = type(module).forward is QuantisedLinear.forward
        self._layer = module

    def parameter(self, name: str) -> Tensor:
        """Return a parameter as the module computes with it, the weight dequantised."""
        return self._layer.dense() if name == "weight" else super().parameter(name)


class Conv1DView(ModuleView):
    """transformers' ``Conv1D`` (GPT-2): the weight is stored transposed, ``[inputs, outputs]``."""

    def __init__(self, module: nn.Module, plain: bool) -> None:
        super().__init__(module, plain)
        self.inputs, self.outputs = self.parameter("weight").shape

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` transposed."""
        return view.T


class EmbeddingView(ModuleView):
    """``nn.Embedding``: the view is ``[inputs, outputs]`` = ``[vocabulary, width]``."""

    lookup = True

    def __init__(self, module: nn.Embedding) -> None:
        # With a largest norm a row depends on all of W + Δ, and looking it up rewrites W.
        if module.max_norm is not None:
            raise DeltafitError("An embedding with max_norm cannot be adapted.")
        # A row's gradient then depends on how often the batch holds it, and A's and B's do not.
        if module.scale_grad_by_freq:
            raise DeltafitError("An embedding with scale_grad_by_freq cannot be adapted.")
        super().__init__(module, type(module).forward is nn.Embedding.forward)
        self.inputs, self.outputs = module.num_embeddings, module.embedding_dim
        self._embedding = module

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` as it is."""
        return view

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``(left @ right)ᵀ``, ``[vocabulary, width]``."""
        return (left @ right).T

    def lowered(self, x: Tensor, right: Tensor) -> Tensor:
        """Return ``right[:, x]``, ``[..., rank]``, for token indices ``x`` of ``[...]``."""
        # The padding row of an embedding gets no gradient, and so none here either.
        return functional.embedding(x, right.T, padding_idx=self._embedding.padding_idx)


def new_view(module: nn.Module) -> ModuleView:
    """Return the view of a module that carries no adapter.

    Raises:
        DeltafitError: no view exists for its type, or what it computes cannot be changed.
    """
    kind = type(module).__name__
    if "forward" in module.__dict__:
        raise DeltafitError(
            f"A {kind} cannot be adapted while another library has put its own forward in its "
            "place (accelerate does, to spread a model over devices). Load it on one device."
        )
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        _check_weight(module, weight)
    if isinstance(module, QuantisedLinear):
        return QuantisedView(module)
    if isinstance(module, nn.Linear):
        return LinearView(module)
    if isinstance(module, nn.Embedding):
        return EmbeddingView(module)
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    if pytorch_utils is not None and isinstance(module, pytorch_utils.Conv1D):
        return Conv1DView(module, type(module).forward is pytorch_utils.Conv1D.forward)
    raise DeltafitError(
        f"A {kind} cannot be adapted; linear layers, GPT-2's Conv1D and embeddings can."
    )


def _check_weight(module: nn.Module, weight: Tensor) -> None:
    kind = type(module).__name__
    if isinstance(weight, UninitializedParameter):
        raise DeltafitError(
            f"A {kind} has no shape before its first call. Run the model once, then adapt it."
        )
    if not weight.is_floating_point() and not isinstance(module, QuantisedLinear):
        raise DeltafitError(
            f"A {kind} with a quantised weight ({weight.dtype}) cannot be adapted. Load the model "
            "in float32 or bfloat16; deltafit.adapters.quantise then stores its weights in few "
            "bits."
        )
    if module._parameters.get("weight") is not weight:
        raise DeltafitError(
            f"A {kind} whose weight is computed from other tensors (a parametrisation, weight_norm "
            "or pruning) cannot be adapted. Make that permanent first: "
            "torch.nn.utils.parametrize.remove_parametrizations, or prune.remove."
        )
