"""Adapters on a model: switch, disable, remove. Plain functions; the model stays its class.

Several adapters share one base without copying it. Each brings the tensors of its layers and its
own copy of the parameters it trains whole, such as its head, which may have its own label count.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from deltafit.adapters.labels import Labels, switch_labels
from deltafit.adapters.layers import LayerState, is_adapted, layer_state, remove_from_layer
from deltafit.adapters.quantised import Quantisation
from deltafit.adapters.shared import SharedTensors
from deltafit.errors import DeltafitError
from deltafit.methods import LayerMethod, Method, StepHook

_STATE = "deltafit_adapters"


@dataclass
class Adapter:
    """One adapter on a model.

    Attributes:
        method: what was trained.
        targets: names of the modules that carry the method's tensors.
        replaced: parameter name → the adapter's own parameter, in place of the base's.
        shared: frozen tensors that all targets compute with.
        requires_grad: which of its tensors did when it was last active; at first all that
            are trained.
        labels: what stands aside: its own label names while it is inactive, else the base's.
        corrects: how the base's weights are stored, if Δ makes up for what that takes from them;
            on weights stored otherwise it would be wrong.
    """

    method: Method
    targets: tuple[str, ...]
    replaced: dict[str, nn.Parameter]
    shared: SharedTensors
    requires_grad: dict[str, bool] = field(default_factory=dict)
    labels: Labels | None = None
    corrects: Quantisation | None = None


@dataclass
class ModelAdapters:
    """All adapters of one model, and what is needed to give the base back.

    Attributes:
        base: parameter name → the base's own parameter, for every name some adapter replaces.
        base_lost: names whose base values an adapter took over (``keep_base=False``).
        required_grad: what required a gradient before the first adapter came; a tied parameter
            under each of its names.
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


def adapter_tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return an adapter's tensors: ``<module>.<tensor>`` in layers, then replaced parameters."""
    adapter = model_adapters(model).adapters[name]
    tensors = {
        f"{target}.{tensor_name}": tensor
        for target in adapter.targets
        for tensor_name, tensor in layer_state(model.get_submodule(target)).tensors(name).items()
    }
    return tensors | adapter.replaced


def trained_tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return those of ``adapter_tensors`` that the method trains."""
    frozen = {
        f"{target}.{tensor_name}"
        for target in model_adapters(model).adapters[name].targets
        for tensor_name in layer_state(model.get_submodule(target)).frozen(name)
    }
    return {n: tensor for n, tensor in adapter_tensors(model, name).items() if n not in frozen}


def frozen_tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return those of ``adapter_tensors`` that stay as they started."""
    trained = trained_tensors(model, name)
    return {n: tensor for n, tensor in adapter_tensors(model, name).items() if n not in trained}


def rate_factors(model: nn.Module) -> dict[nn.Parameter, float]:
    """Return what learning rates are multiplied by, for adapters' tensors where it is not 1."""
    states = [layer_state(module) for module in model.modules() if is_adapted(module)]
    return {
        state.tensors(adapter)[tensor_name]: factor
        for state in states
        for adapter, method in state.methods.items()
        for tensor_name, factor in method.rate_factors(state.view).items()
        if factor != 1
    }


def step_hook(model: nn.Module, name: str, total_steps: int) -> StepHook | None:
    """Return what an adapter's method adds to the training steps of a run, if anything."""
    adapter = model_adapters(model).adapters[name]
    if not isinstance(adapter.method, LayerMethod):
        return None
    layers = [layer.tensors(name) for layer in _layers(model, adapter)]
    return adapter.method.step_hook(layers, total_steps)


def register(
    model: nn.Module, name: str, adapter: Adapter, base: Mapping[str, nn.Parameter]
) -> None:
    """Enter an adapter whose layer tensors are in place, inactive; freeze all the rest.

    Args:
        model: with no adapter active.
        name: a free name.
        adapter: to be entered.
        base: all parameters of the base, by name.
    """
    state = model_adapters(model)
    if not state.adapters:
        model.__dict__[_STATE] = state
        named = model.named_parameters(remove_duplicate=False)
        state.required_grad = {n: p.requires_grad for n, p in named}
    for parameter in base.values():
        parameter.requires_grad_(False)
    for parameter_name, parameter in adapter.replaced.items():
        state.base.setdefault(parameter_name, base[parameter_name])
        if parameter is base[parameter_name]:
            state.base_lost.add(parameter_name)
    state.adapters[name] = adapter


def activate(model: nn.Module, name: str | None) -> None:
    """Make the named adapter the active one, with its head; None gives the base alone.

    Raises:
        DeltafitError: there is no such adapter, one is merged, or the base's values are gone.
    """
    state = model_adapters(model)
    if name is not None and name not in state.adapters:
        known = ", ".join(state.adapters) or "none"
        raise DeltafitError(f"The model has no adapter {name!r}; it has {known}.")
    refuse_merged(model)
    if name == state.active:
        return
    _deactivate(model)
    if name is None:
        return
    adapter = state.adapters[name]
    _place(model, adapter, adapter.replaced)
    for layer in _layers(model, adapter):
        layer.active = name
    trained = trained_tensors(model, name)
    for tensor_name, tensor in adapter_tensors(model, name).items():
        tensor.requires_grad_(adapter.requires_grad.get(tensor_name, tensor_name in trained))
    state.active = name


def _deactivate(model: nn.Module) -> None:
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
    tensors = adapter_tensors(model, state.active)
    adapter.requires_grad = {name: tensor.requires_grad for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(False)
    for layer in _layers(model, adapter):
        layer.active = None
    _place(model, adapter, {name: state.base[name] for name in adapter.replaced})
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
    """Take an adapter off the model; after the last one the model is as it was before.

    Raises:
        DeltafitError: there is no such adapter, one is merged, or the base's values are gone.
    """
    state = model_adapters(model)
    if name not in state.adapters:
        raise DeltafitError(f"The model has no adapter {name!r} to remove.")
    refuse_merged(model)
    if state.active == name:
        _deactivate(model)
    adapter = state.adapters.pop(name)
    for target in adapter.targets:
        remove_from_layer(model.get_submodule(target), name)
    still = {parameter for other in state.adapters.values() for parameter in other.replaced}
    state.base = {parameter: base for parameter, base in state.base.items() if parameter in still}
    if not state.adapters:
        _forget(model, state)


def forget_adapters(model: nn.Module) -> None:
    """Drop every adapter and keep the parameters as they stand now."""
    state = model_adapters(model)
    for module in list(model.modules()):
        if is_adapted(module):
            for adapter in tuple(layer_state(module).methods):
                remove_from_layer(module, adapter)
    if state.adapters:
        _forget(model, state)


def _forget(model: nn.Module, state: ModelAdapters) -> None:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(state.required_grad.get(name, parameter.requires_grad))
    del model.__dict__[_STATE]


def _place(model: nn.Module, adapter: Adapter, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put parameters in their places by name, in every place that a tied one stands."""
    now = {id(model.get_parameter(name)): new for name, new in parameters.items()}
    if not now:
        return
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in now:
                module._parameters[leaf] = moved_like(now[id(parameter)], parameter)
                if leaf == "weight" and isinstance(module, nn.Linear):
                    outputs = module.out_features
                    module.out_features, module.in_features = module.weight.shape
                    adapter.labels = switch_labels(
                        model, outputs, module.out_features, adapter.labels
                    )


def moved_like(parameter: nn.Parameter, present: nn.Parameter) -> nn.Parameter:
    """Return ``parameter``, moved and converted as the model was while it stood aside."""
    # A quantised weight stays one, though a dense merged one stands in its place.
    dtype = present.dtype if parameter.is_floating_point() else parameter.dtype
    if (parameter.device, parameter.dtype) != (present.device, dtype):
        parameter.data = parameter.data.to(present.device, dtype)
        parameter.grad = None  # of the device and dtype before
    return parameter


def _layers(model: nn.Module, adapter: Adapter) -> list[LayerState]:
    return [layer_state(model.get_submodule(target)) for target in adapter.targets]


def refuse_merged(model: nn.Module) -> None:
    """Raise a DeltafitError if an adapter is merged."""
    state = model_adapters(model)
    if state.merged is not None:
        raise DeltafitError(f"The adapter {state.active!r} is merged; unmerge the model first.")
