"""The layer types an adapter can sit in, each as one view, and the classes that carry adapters.

Injection swaps a module's class for a subclass of it, in place. The module stays where it is,
``weight`` keeps its name and its state-dict key, and code that reads ``.weight`` goes on working.
"""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from deltafit.errors import DeltafitError
from deltafit.methods import DeltaMethod, Layer

STATE = "deltafit_layer"


class ModuleView(Layer):
    """A module as methods see it; one subclass a layer type says how it differs.

    Attributes:
        module: the module itself.
        plain: whether it computes what its layer type does. A subclass with a forward of its own
            (an embedding that scales its rows) may not, and a method's fast path does not know.
    """

    lookup = False

    def __init__(self, module: nn.Module, plain: bool) -> None:
        self.module = module
        self.plain = plain

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

    def forward_with(self, deltas: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with its parameters changed: the law's right-hand side."""
        with layer_state(self.module).inactive():
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


class Conv1DView(ModuleView):
    """transformers' ``Conv1D`` (GPT-2): the weight is stored transposed, ``[inputs, outputs]``."""

    def __init__(self, module: nn.Module, plain: bool) -> None:
        super().__init__(module, plain)
        self.inputs, self.outputs = self._weight.shape

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
        super().__init__(module, type(module).forward is nn.Embedding.forward)
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
        DeltafitError: no view exists for its type, or what it computes cannot be changed.
    """
    if is_adapted(module):
        return layer_state(module).view
    kind = type(module).__name__
    if "forward" in module.__dict__:
        raise DeltafitError(
            f"A {kind} cannot be adapted while another library has put its own forward in its "
            "place (accelerate does, to spread a model over devices). Load it on one device."
        )
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        raise DeltafitError(
            f"A {kind} with a quantised weight ({weight.dtype}) cannot be adapted. Load the model "
            "in float32 or bfloat16."
        )
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
        self.hook: RemovableHandle | None = None

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

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base's output changed by the active adapter, if there is one."""
        state = layer_state(self)
        if state.active is not None and not state.view.plain:
            return state.view.forward_with(state.deltas(state.active), *args, **kwargs)
        y: Tensor = super().forward(*args, **kwargs)
        if state.active is None:
            return y
        x = args[0] if args else next(iter(kwargs.values()))
        return state.methods[state.active].post(state.view, x, y, state.tensors(state.active))


_adapted_classes: dict[type, type[nn.Module]] = {}


def _adapted_class(original: type[nn.Module]) -> type[nn.Module]:
    if original not in _adapted_classes:
        name = f"Adapted{original.__name__}"
        _adapted_classes[original] = type(name, (AdaptedLayer, original), {})
    return _adapted_classes[original]


def layer_state(module: nn.Module) -> LayerState:
    """Return the adapters of an adapted module."""
    state: LayerState = module.__dict__[STATE]
    return state


def is_adapted(module: nn.Module) -> bool:
    """Return whether the module carries adapters."""
    return STATE in module.__dict__


def add_to_layer(
    module: nn.Module,
    adapter: str,
    method: DeltaMethod,
    tensors: Mapping[str, Tensor],
    parent: nn.Module,
) -> None:
    """Give a module one more adapter, inactive. The tensors become its parameters."""
    if not is_adapted(module):
        state = LayerState(module)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # In evaluation it hands the weights to one fused kernel, past the adapter, unless a
            # hook stands on one of its modules.
            state.hook = module.register_forward_pre_hook(_is_called)
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


def _is_called(module: nn.Module, args: Any) -> None:
    """Do nothing; see ``add_to_layer``."""


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
        if state.hook is not None:
            state.hook.remove()
        module.__class__ = state.original_class
        del module.__dict__[STATE]


def adapter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's adapter tensors: float32, or float64 in a float64 model."""
    weight: Any = module.weight
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
