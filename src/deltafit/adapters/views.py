"""The layer types an adapter can sit in, each as one view of its weight."""

import sys

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter

from deltafit.adapters.convolution import ConvolutionView
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.quantised import QuantisedLinear
from deltafit.errors import DeltafitError


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
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return ConvolutionView(module)
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    if pytorch_utils is not None and isinstance(module, pytorch_utils.Conv1D):
        return Conv1DView(module, type(module).forward is pytorch_utils.Conv1D.forward)
    raise DeltafitError(
        f"A {kind} cannot be adapted; linear layers, GPT-2's Conv1D, embeddings, and convolutions "
        "(Conv1d and Conv2d) can."
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
