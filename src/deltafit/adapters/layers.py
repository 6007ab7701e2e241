"""The layer types an adapter can sit in, each as one view, and the classes that carry adapters.

Injection swaps a module's class for a subclass of it, in place. The module stays where it is,
``weight`` keeps its name and its state-dict key, and code that reads ``.weight`` goes on working.
"""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from deltafit.errors import DeltafitError
from deltafit.methods import DeltaMethod, Layer

STATE = "deltafit_layer"


class ModuleView(Layer):
    """A module as methods see it; one subclass a layer type says how it differs."""

    lookup = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def training(self) -> bool:  # type: ignore[override]  # a protocol's attribute, read only here
        """Whether the module is in training mode."""
        return self.module.training

    @abstractmethod
    def to_parameter(self, view: Tensor) -> Tensor:
        """Return a tensor of the weight's view in the layout of the weight itself."""

    def view(self) -> Tensor:
        """Return the weight in the view's layout. Transposing is its own inverse."""
        return self.to_parameter(self._weight)

    @property
    def _weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left @ right``, ``[outputs, inputs]``."""
        return left @ right

    def low_rank(self, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        """Return ``left · (right · x)`` for ``x`` of ``[..., inputs]``."""
        return functional.linear(functional.linear(x, right), left)

    def changed(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``{parameter name: parameter + Δ}`` in the parameters' layout and dtype.

        The sum is taken in float32 or better and rounded once.
        """
        result = {}
        for name, delta in deltas.items():
            base = getattr(self.module, name)
            wide = torch.promote_types(base.dtype, delta.dtype)
            change = self.to_parameter(delta) if name == "weight" else delta
            result[name] = (base.to(wide) + change.to(wide)).to(base.dtype)
        return result

    def forward_with(self, deltas: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the layer's output with its parameters changed: the law's right-hand side."""
        with layer_state(self.module).inactive():
            output = functional_call(self.module, self.changed(deltas), (x,))
        assert isinstance(output, Tensor)
        return output


class LinearView(ModuleView):
    """``nn.Linear``: the weight is ``[outputs, inputs]`` as it stands."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module)
        self.inputs, self.outputs = module.in_features, module.out_features

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` as it is."""
        return view


class Conv1DView(ModuleView):
    """transformers' ``Conv1D`` (GPT-2): the weight is stored transposed, ``[inputs, outputs]``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.inputs, self.outputs = self._weight.shape

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` transposed."""
        return view.T


class EmbeddingView(ModuleView):
    """``nn.Embedding``: the view is ``[inputs, outputs]`` = ``[vocabulary, width]``."""

    lookup = True

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__(module)
        self.inputs, self.outputs = module.num_embeddings, module.embedding_dim
        self._embedding = module

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` as it is."""
        return view

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``(left @ right)ᵀ``, ``[vocabulary, width]``."""
        return (left @ right).T

    def low_rank(self, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        """Return ``left · right[:, x]`` for token indices ``x`` of ``[...]``."""
        # The padding row of an embedding gets no gradient, and so none here either.
        low = functional.embedding(x, right.T, padding_idx=self._embedding.padding_idx)
        return functional.linear(low, left)


def view_of(module: nn.Module) -> ModuleView:
    """Return the view of a module that can be adapted.

    Raises:
        DeltafitError: no view exists for its type.
    """
    if isinstance(module, nn.Linear):
        return LinearView(module)
    if isinstance(module, nn.Embedding):
        return EmbeddingView(module)
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    if pytorch_utils is not None and isinstance(module, pytorch_utils.Conv1D):
        return Conv1DView(module)
    raise DeltafitError(
        f"A {type(module).__name__} cannot be adapted; linear layers, GPT-2's Conv1D and "
        "embeddings can."
    )


class LayerState:
    """The adapters of one module: for each, the method as it applies here and its tensors.

    The tensors themselves are parameters of the module (``lora_A.<adapter>``), so that moving the
    model moves them and optimisers find them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.view = view_of(module)
        self.original_class = type(module)
        self.methods: dict[str, DeltaMethod] = {}
        self.tensor_names: dict[str, tuple[str, ...]] = {}
        self.active: str | None = None

    def tensors(self, adapter: str) -> dict[str, nn.Parameter]:
        """Return an adapter's tensors in this layer, by the method's names for them."""
        return {
            name: getattr(self.view.module, name)[adapter] for name in self.tensor_names[adapter]
        }

    def deltas(self, adapter: str) -> dict[str, Tensor]:
        """Return ``{parameter name: Δ}`` in the layer's view."""
        return self.methods[adapter].deltas(self.view, self.tensors(adapter))

    @contextmanager
    def inactive(self) -> Iterator[None]:
        """Let the layer run as its base alone."""
        active, self.active = self.active, None
        try:
            yield
        finally:
            self.active = active


class AdaptedLayer(nn.Module):
    """The part of an adapted module's class that is ours: the base's forward, then the method's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output changed by the active adapter, if there is one."""
        y: Tensor = super().forward(x)
        state = layer_state(self)
        if state.active is None:
            return y
        return state.methods[state.active].post(state.view, x, y, state.tensors(state.active))


@cache
def _adapted_class(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Adapted{original.__name__}", (AdaptedLayer, original), {})


def layer_state(module: nn.Module) -> LayerState:
    """Return the adapters of an adapted module."""
    state: LayerState = module.__dict__[STATE]
    return state


def is_adapted(module: nn.Module) -> bool:
    """Return whether the module carries adapters."""
    return STATE in module.__dict__


def add_to_layer(
    module: nn.Module, adapter: str, method: DeltaMethod, tensors: Mapping[str, Tensor]
) -> None:
    """Give a module one more adapter, inactive. The tensors become its parameters."""
    if not is_adapted(module):
        state = LayerState(module)
        # Not through nn.Module.__setattr__: the state is no submodule.
        module.__dict__[STATE] = state
        module.__class__ = _adapted_class(type(module))
    state = layer_state(module)
    for name, tensor in tensors.items():
        if not hasattr(module, name):
            setattr(module, name, nn.ParameterDict())
        getattr(module, name)[adapter] = nn.Parameter(tensor, requires_grad=False)
    state.methods[adapter] = method
    state.tensor_names[adapter] = tuple(tensors)


def remove_from_layer(module: nn.Module, adapter: str) -> None:
    """Take an adapter out of a module; with the last one the module is what it was before."""
    state = layer_state(module)
    for name in state.tensor_names.pop(adapter):
        holder = getattr(module, name)
        del holder[adapter]
        if not len(holder):
            delattr(module, name)
    del state.methods[adapter]
    if not state.methods:
        module.__class__ = state.original_class
        del module.__dict__[STATE]


def adapter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's adapter tensors: float32, or float64 in a float64 model."""
    weight: Any = module.weight
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
