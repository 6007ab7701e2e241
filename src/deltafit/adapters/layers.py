"""Layers that carry adapters: their classes, their tensors, and which adapter is active.

Injection swaps a module's class for a subclass of it, in place. The module stays where it is,
``weight`` keeps its name and its state-dict key, and code that reads ``.weight`` goes on working.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.shared import SharedTensors
from deltafit.adapters.views import new_view
from deltafit.methods import DeltaMethod, LayerMethod

STATE = "deltafit_layer"


class LayerState:
    """The adapters of one module: for each, the method as it applies here and its tensors.

    The tensors themselves are parameters of the module (``lora_A.<adapter>``), so that moving the
    model moves them and optimisers find them.
    """

    def __init__(self, module: nn.Module, view: ModuleView, carrier: "type[AdaptedLayer]") -> None:
        self.view, self.carrier = view, carrier
        self.view.alone = partial(self.switched, None)
        self.original_class = type(module)
        self.methods: dict[str, LayerMethod] = {}
        self.tensor_names: dict[str, tuple[str, ...]] = {}
        self.shared: dict[str, SharedTensors] = {}
        self.active: str | None = None
        self.hooks: list[RemovableHandle] = []

    def tensors(self, adapter: str) -> dict[str, nn.Parameter]:
        """Return an adapter's tensors in this layer, by the method's names for them."""
        # Not by attribute and key: a pass of many adapters asks hundreds of times.
        held = self.view.module._modules
        return {
            name: held[name]._parameters[adapter]  # type: ignore[union-attr, misc]  # filled by us
            for name in self.tensor_names[adapter]
        }

    def all_tensors(self, adapter: str) -> dict[str, Tensor]:
        """Return what the method computes with: an adapter's tensors here, and its shared ones."""
        own = self.tensors(adapter)
        return {**own, **self.shared[adapter].beside(next(iter(own.values())))}

    def frozen(self, adapter: str) -> tuple[str, ...]:
        """Return which of an adapter's tensors here are kept as they started."""
        frozen = self.methods[adapter].frozen_tensors(self.view)
        return tuple(name for name in self.tensor_names[adapter] if name in frozen)

    def kept_tensors(self, adapter: str) -> dict[str, Tensor]:
        """Return an adapter's tensors here as they are saved."""
        return self.methods[adapter].kept_tensors(self.view, self.tensors(adapter))

    def deltas(self, adapter: str) -> dict[str, Tensor]:
        """Return ``{parameter name: Δ}`` in the layer's view; of an insertion there is none."""
        method = self.methods[adapter]
        if not isinstance(method, DeltaMethod):
            return {}
        return method.deltas(self.view, self.all_tensors(adapter))

    def runs_changed(self, adapter: str) -> bool:
        """Return whether the layer runs with its parameters changed, past the method's own path.

        That is so where the path is for other layers than this one.
        """
        method, view = self.methods[adapter], self.view
        return isinstance(method, DeltaMethod) and not (
            view.plain and (method.convolves or not view.convolution)
        )

    @contextmanager
    def switched(self, adapter: str | None) -> Iterator[None]:
        """Let the layer run under another of its adapters; None, or one not here, for its base."""
        active, self.active = self.active, adapter if adapter in self.methods else None
        try:
            yield
        finally:
            self.active = active


class AdaptedLayer(nn.Module):
    """The part of an adapted module's class that is ours: the base's forward, then the method's."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base's output changed by the active adapter, if there is one."""
        state = layer_state(self)
        active, view = state.active, state.view
        if active is None:
            base: Tensor = super().forward(*args, **kwargs)
            return base
        if state.runs_changed(active):
            return view.forward_with(state.deltas(active), *args, **kwargs)
        method, tensors = state.methods[active], state.all_tensors(active)
        x = args[0] if args else next(iter(kwargs.values()))
        if view.plain:  # and so takes nothing else
            y: Tensor = super().forward(method.pre(view, x, tensors))
        else:
            y = super().forward(*args, **kwargs)
        return method.post(view, x, y, tensors)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy by the base's class: this one is made at run time, in no module."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        state = layer_state(self)
        return (new_adapted_layer, (state.original_class, state.carrier), *reduced[2:])


_adapted_classes: dict[type, type[nn.Module]] = {}


def _adapted_class(original: type[nn.Module], carrier: type[AdaptedLayer]) -> type[nn.Module]:
    if original not in _adapted_classes:
        name = f"Adapted{original.__name__}"
        _adapted_classes[original] = type(name, (carrier, original), {})
    return _adapted_classes[original]


def new_adapted_layer(original: type[nn.Module], carrier: type[AdaptedLayer]) -> nn.Module:
    """Return an empty module of the adapted class, for pickle to fill."""
    adapted = _adapted_class(original, carrier)
    return adapted.__new__(adapted)


def layer_state(module: nn.Module) -> LayerState:
    """Return the adapters of an adapted module."""
    state: LayerState = module.__dict__[STATE]
    return state


def is_adapted(module: nn.Module) -> bool:
    """Return whether the module carries adapters."""
    return STATE in module.__dict__


def view_of(module: nn.Module) -> ModuleView:
    """Return the view of a module that is adapted or can be.

    Raises:
        DeltafitError: no view exists for its type, or what it computes cannot be changed.
    """
    return layer_state(module).view if is_adapted(module) else new_view(module)


def add_to_layer(
    module: nn.Module,
    adapter: str,
    method: LayerMethod,
    tensors: Mapping[str, Tensor],
    parent: nn.Module,
    shared: SharedTensors,
) -> None:
    """Give a module one more adapter, inactive. The tensors become its parameters."""
    if not is_adapted(module):
        state = carry(module, new_view(module), AdaptedLayer)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # In evaluation it hands the weights to one fused kernel, past the adapter, unless a
            # hook stands on one of its modules.
            state.hooks.append(module.register_forward_pre_hook(_is_called))
    enter(module, adapter, method, tensors, shared)


def carry(module: nn.Module, view: ModuleView, carrier: type[AdaptedLayer]) -> LayerState:
    """Make a module one that carries adapters, none yet; return what it knows of them."""
    state = LayerState(module, view, carrier)
    # Not through nn.Module.__setattr__: the state is no submodule.
    module.__dict__[STATE] = state
    module.__class__ = _adapted_class(type(module), carrier)
    return state


def enter(
    module: nn.Module,
    adapter: str,
    method: LayerMethod,
    tensors: Mapping[str, Tensor],
    shared: SharedTensors,
) -> None:
    """Give a module that carries adapters one more, inactive."""
    state = layer_state(module)
    for name, tensor in tensors.items():
        if not hasattr(module, name):
            setattr(module, name, nn.ParameterDict())
        getattr(module, name)[adapter] = nn.Parameter(tensor, requires_grad=False)
    state.methods[adapter] = method
    state.tensor_names[adapter] = tuple(tensors)
    state.shared[adapter] = shared


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
    del state.methods[adapter], state.shared[adapter]
    if not state.methods:
        for hook in state.hooks:
            hook.remove()
        module.__class__ = state.original_class
        del module.__dict__[STATE]


def adapter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's adapter tensors: float32, or float64 in a float64 model."""
    weight = getattr(module, "weight", None)
    dtype = (weight if isinstance(weight, Tensor) else next(module.parameters())).dtype
    return torch.float64 if dtype == torch.float64 else torch.float32
