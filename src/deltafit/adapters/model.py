"""Adapters on a model: add, switch, disable, remove. Plain functions; the model stays its class.

Several adapters share one base without copying it. Each brings the tensors of its layers and its
own copy of the parameters it trains whole, such as its head, which may have its own label count.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from deltafit.adapters.layers import (
    LayerState,
    adapter_dtype,
    add_to_layer,
    is_adapted,
    layer_state,
    remove_from_layer,
    view_of,
)
from deltafit.adapters.structure import last_blocks, within
from deltafit.adapters.targets import select_targets
from deltafit.errors import DeltafitError
from deltafit.methods import DeltaMethod, Method

_STATE = "deltafit_adapters"


@dataclass
class Adapter:
    """One adapter on a model.

    Attributes:
        method: what was trained.
        targets: names of the modules that carry the method's tensors.
        replaced: parameter name → the adapter's own parameter, in place of the base's.
        trainable: whether its tensors require gradients while it is active.
    """

    method: Method
    targets: tuple[str, ...]
    replaced: dict[str, nn.Parameter]
    trainable: bool


@dataclass
class ModelAdapters:
    """All adapters of one model, and what is needed to give the base back.

    Attributes:
        base: parameter name → the base's own parameter, for every name some adapter replaces.
        base_lost: names whose base values an adapter took over (``keep_base=False``).
        required_grad: what required a gradient before the first adapter came.
    """

    adapters: dict[str, Adapter] = field(default_factory=dict)
    active: str | None = None
    merged: dict[str, nn.Parameter] | None = None
    base: dict[str, nn.Parameter] = field(default_factory=dict)
    base_lost: set[str] = field(default_factory=set)
    required_grad: dict[str, bool] = field(default_factory=dict)


def model_adapters(model: nn.Module) -> ModelAdapters:
    """Return the model's adapters; an empty set where it has none."""
    state: ModelAdapters | None = model.__dict__.get(_STATE)
    return state if state is not None else ModelAdapters()


class _Parts:
    """The model's parameters by part, as replacements choose among them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def every(self) -> tuple[str, ...]:
        """Return the names of all base parameters."""
        return tuple(base_parameters(self.model))

    def last_blocks(self, count: int) -> tuple[str, ...]:
        """Return the names of the last blocks' parameters."""
        modules = last_blocks(self.model, count)
        return tuple(
            name
            for name in base_parameters(self.model)
            if any(within(name, module) for module in modules)
        )


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not an adapter's layer tensors, tied ones once."""
    ours = {
        id(tensor)
        for module in model.modules()
        if is_adapted(module)
        for adapter in layer_state(module).methods
        for tensor in layer_state(module).tensors(adapter).values()
    }
    return {name: p for name, p in model.named_parameters() if id(p) not in ours}


def adapt(
    model: nn.Module,
    method: Method,
    *,
    name: str = "default",
    seed: int = 0,
    head: Sequence[str] = (),
    initial: Mapping[str, Tensor] | None = None,
    keep_base: bool = True,
) -> None:
    """Add an adapter to ``model`` and make it the active, trainable one.

    Everything else is frozen. The model's outputs do not change: Δ starts at zero, and replaced
    parameters start as copies.

    Args:
        model: any module with linear layers; changed in place.
        method: what to train.
        name: the adapter's name on this model.
        seed: with each tensor's name, decides its starting values, whatever the order.
        head: names of the parameters that make up the head; always trained.
        initial: starting values of replaced parameters, of any shape (a head with other labels).
        keep_base: False trains the replaced parameters in place, without a copy to return to:
            what full fine-tuning in a process of its own wants. ``initial`` must be empty then.

    Raises:
        UsageError: the targets match nothing; the sentence lists the nearest candidates.
        DeltafitError: the name is taken or unusable, or an adapter is merged.
    """
    state = model_adapters(model)
    _check_name(state, name)
    replaced_names = _replaced_names(model, method, head)
    targets: tuple[str, ...] = ()
    if isinstance(method, DeltaMethod):
        excluded = {parameter.rpartition(".")[0] for parameter in replaced_names}
        targets = select_targets(
            model, method.target_modules, layers=method.layers, exclude=excluded
        )
    initial = dict(initial or {})
    _check_initial(initial, replaced_names, keep_base)

    model.__dict__[_STATE] = state
    if not state.adapters:
        state.required_grad = {n: p.requires_grad for n, p in model.named_parameters()}
    deactivate(model)
    base = base_parameters(model)
    for parameter in base.values():
        parameter.requires_grad_(False)
    for target in targets:
        assert isinstance(method, DeltaMethod)
        _add_layer(model.get_submodule(target), target, name, method.for_module(target), seed)
    replaced = {
        parameter: (
            nn.Parameter(initial.get(parameter, base[parameter]).detach().clone())
            if keep_base
            else base[parameter]
        )
        for parameter in replaced_names
    }
    state.base |= {n: base[n] for n in replaced_names if n not in state.base}
    if not keep_base:
        state.base_lost |= set(replaced_names)
    state.adapters[name] = Adapter(method, targets, replaced, trainable=True)
    activate(model, name)


def _check_name(state: ModelAdapters, name: str) -> None:
    if not name or "." in name:
        raise DeltafitError(f"An adapter's name must not be empty or hold a dot; got {name!r}.")
    if name in state.adapters:
        raise DeltafitError(
            f"The model already has an adapter named {name!r}. Choose another name, or remove "
            "that one first."
        )
    _refuse_merged(state)


def _check_initial(
    initial: Mapping[str, Tensor], replaced: Sequence[str], keep_base: bool
) -> None:
    unknown = [name for name in initial if name not in replaced]
    if unknown:
        raise DeltafitError(f"Starting values given for {unknown[0]!r}, which is not trained.")
    if initial and not keep_base:
        raise DeltafitError("Starting values need keep_base=True: they are not the base's.")


def _replaced_names(model: nn.Module, method: Method, head: Sequence[str]) -> tuple[str, ...]:
    base = base_parameters(model)
    wanted = {*head, *method.trained_parameters(_Parts(model))}
    for module_name in method.trained_modules if isinstance(method, DeltaMethod) else ():
        inside = [n for n in base if within(n, module_name)]
        if not inside:
            raise DeltafitError(
                f"trained_modules names {module_name!r}, which has no parameters in this model. "
                f"Its top modules are {', '.join(name for name, _ in model.named_children())}."
            )
        wanted.update(inside)
    unknown = sorted(wanted - set(base))
    if unknown:
        raise DeltafitError(f"The model has no parameter {unknown[0]!r}.")
    return tuple(name for name in base if name in wanted)


def generator_for(seed: int, tensor_name: str) -> Generator:
    """Return a CPU generator that depends on ``seed`` and the tensor's name alone."""
    digest = hashlib.sha256(f"{seed}/{tensor_name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _add_layer(
    module: nn.Module, module_name: str, adapter: str, method: DeltaMethod, seed: int
) -> None:
    device = next(module.parameters()).device
    tensors = method.initialise(
        view_of(module), lambda tensor: generator_for(seed, f"{module_name}.{tensor}")
    )
    dtype = adapter_dtype(module)
    add_to_layer(
        module, adapter, method, {n: t.to(device=device, dtype=dtype) for n, t in tensors.items()}
    )


def activate(model: nn.Module, name: str | None) -> None:
    """Make the named adapter the active one, with its head; None gives the base alone.

    Raises:
        DeltafitError: there is no such adapter, one is merged, or the base's values are gone.
    """
    state = model_adapters(model)
    if name is not None and name not in state.adapters:
        known = ", ".join(state.adapters) or "none"
        raise DeltafitError(f"The model has no adapter {name!r}; it has {known}.")
    _refuse_merged(state)
    deactivate(model)
    if name is None:
        return
    adapter = state.adapters[name]
    _place(model, adapter.replaced)
    for layer in _layers(model, adapter):
        layer.active = name
    for tensor in adapter_tensors(model, name).values():
        tensor.requires_grad_(adapter.trainable)
    state.active = name


def deactivate(model: nn.Module) -> None:
    """Give the base back, with its own parameters in every place."""
    state = model_adapters(model)
    if state.active is None:
        return
    adapter = state.adapters[state.active]
    lost = state.base_lost & set(adapter.replaced)
    if lost:
        raise DeltafitError(
            f"The base's own values of {min(lost)!r} and {len(lost) - 1} more were trained in "
            "place and not kept. Load the base again, or adapt with keep_base=True."
        )
    for tensor in adapter_tensors(model, state.active).values():
        tensor.requires_grad_(False)
    for layer in _layers(model, adapter):
        layer.active = None
    _place(model, {name: state.base[name] for name in adapter.replaced})
    state.active = None


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Let the model be its base alone within the block; the active adapter returns after it."""
    active = model_adapters(model).active
    activate(model, None)
    try:
        yield
    finally:
        activate(model, active)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter off the model; after the last one the model is as it was before."""
    state = model_adapters(model)
    if name not in state.adapters:
        raise DeltafitError(f"The model has no adapter {name!r} to remove.")
    _refuse_merged(state)
    if state.active == name:
        deactivate(model)
    adapter = state.adapters.pop(name)
    for target in adapter.targets:
        remove_from_layer(model.get_submodule(target), name)
    if not state.adapters:
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(state.required_grad[parameter_name])
        del model.__dict__[_STATE]


def forget_adapters(model: nn.Module) -> None:
    """Drop every adapter and keep the parameters as they stand now."""
    for module in list(model.modules()):
        if is_adapted(module):
            for adapter in tuple(layer_state(module).methods):
                remove_from_layer(module, adapter)
    model.__dict__.pop(_STATE, None)


def adapter_tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return an adapter's tensors: ``<module>.<tensor>`` in layers, then replaced parameters."""
    adapter = model_adapters(model).adapters[name]
    tensors = {
        f"{target}.{tensor_name}": tensor
        for target in adapter.targets
        for tensor_name, tensor in layer_state(model.get_submodule(target)).tensors(name).items()
    }
    return tensors | adapter.replaced


def _place(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put parameters in their places by name, in every place that a tied one stands."""
    now = {id(model.get_parameter(name)): new for name, new in parameters.items()}
    if not now:
        return
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in now:
                module._parameters[leaf] = now[id(parameter)]
                if leaf == "weight" and isinstance(module, nn.Linear):
                    module.out_features, module.in_features = module.weight.shape


def _layers(model: nn.Module, adapter: Adapter) -> list[LayerState]:
    return [layer_state(model.get_submodule(target)) for target in adapter.targets]


def _refuse_merged(state: ModelAdapters) -> None:
    if state.merged is not None:
        raise DeltafitError(f"The adapter {state.active!r} is merged; unmerge the model first.")
