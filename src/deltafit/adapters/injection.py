"""Putting an adapter on a model: everything is checked and made first, then put in its place."""

from collections.abc import Mapping, Sequence

from torch import Generator, Tensor, nn

from deltafit.adapters.layers import adapter_dtype, is_adapted
from deltafit.adapters.model import (
    Adapter,
    activate,
    base_parameters,
    disabled,
    model_adapters,
    refuse_merged,
    register,
)
from deltafit.adapters.parts import Parts
from deltafit.adapters.places import add_to_modules, select_places, view_for
from deltafit.adapters.quantising import quantisation_of
from deltafit.adapters.seeding import generator_for
from deltafit.adapters.shared import SharedTensors
from deltafit.adapters.statistics import Statistics, check_statistic, informed
from deltafit.adapters.structure import repeated_blocks, within
from deltafit.adapters.targets import select_targets
from deltafit.adapters.tied import first_names, under_first_names
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import DeltaMethod, Insertion, LayerMethod, Method
from deltafit.methods.base import Tensors
from deltafit.methods.checks import means
from deltafit.methods.delta import corrects_rounding


def adapt(
    model: nn.Module,
    method: Method,
    *,
    name: str = "default",
    seed: int = 0,
    head: Sequence[str] = (),
    initial: Mapping[str, Tensor] | None = None,
    keep_base: bool = True,
    statistics: Statistics | None = None,
) -> None:
    """Add an adapter to ``model`` and make it the active, trainable one.

    Everything else is frozen. The model's outputs do not change: Δ starts at zero, what is inserted
    adds nothing, and replaced parameters start as copies. Exceptions are virtual tokens, which
    texts attend to at once, and a method that makes up for the rounding of a quantised base.

    Args:
        model: any module with linear layers, embeddings or convolutions; changed in place, or not
            at all on an error.
        method: what to train.
        name: the adapter's name on this model.
        seed: with each tensor's name, decides its starting values, whatever the order.
        head: names of the parameters that make up the head; always trained. Here and in
            ``initial`` a tied parameter may have any of its names.
        initial: starting values of replaced parameters. A linear layer outside the blocks may get
            another number of outputs so: a head with other labels.
        keep_base: False trains the replaced parameters in place, without a copy to return to:
            what full fine-tuning in a process of its own wants. ``initial`` must be empty then.
        statistics: what is known of each target, for a method that starts from that.

    Raises:
        UsageError: targets or trained modules match nothing; the sentence lists candidates.
        DeltafitError: the name is taken or unusable, nothing would be trained, starting values do
            not fit, or an adapter is merged; or the method needs to know what ``statistics`` lack.
    """
    _check_name(model, name)
    targets, replaced_names = _select(model, method, head)
    known = statistics or {}
    method = informed(method, {t: model.get_submodule(t) for t in targets}, known)
    with disabled(model):  # shapes and values are the base's
        base = base_parameters(model)
        values = under_first_names(model, initial or {})
        _check_initial(model, values, replaced_names, base, keep_base)
        layers = {t: _layer(model, t, method, seed, known.get(t, {})) for t in targets}
        views = [view_for(model, target, method) for target in targets]
        shared = method.shared_tensors(views) if isinstance(method, LayerMethod) else {}
        replaced = {
            n: nn.Parameter(values.get(n, base[n]).detach().clone()) if keep_base else base[n]
            for n in replaced_names
        }
    activate(model, None)
    adapter = Adapter(method, targets, replaced, SharedTensors(shared))
    if corrects_rounding(method):
        adapter.corrects = quantisation_of(model)
    register(model, name, adapter, base)
    add_to_modules(model, name, layers, adapter.shared)
    activate(model, name)


def check_fits(
    model: nn.Module, method: Method, *, head: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Raise what ``adapt`` would raise of the method on this model; its weights are not read.

    Args:
        model: as for ``adapt``; the meta device will do.
        method: what to train.
        head: names of the parameters that make up the head.

    Returns:
        The names of the modules that would be adapted, and of the parameters trained whole.

    Raises:
        DeltafitError: as ``adapt``.
    """
    return _select(model, method, head)


def _check_name(model: nn.Module, name: str) -> None:
    # A dict of parameters keeps them as attributes, beside its own.
    if not name or "." in name or hasattr(nn.ParameterDict(), name):
        raise DeltafitError(
            f"An adapter cannot be named {name!r}: a name must not be empty, hold a dot, or be "
            "that of an attribute of torch modules."
        )
    if name in model_adapters(model).adapters:
        raise DeltafitError(
            f"The model already has an adapter named {name!r}. Choose another name, or remove "
            "that one first."
        )
    refuse_merged(model)


def _select(
    model: nn.Module, method: Method, head: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the modules to adapt and of the parameters to replace."""
    replaced = _replaced_names(model, method, head)
    if isinstance(method, Insertion):
        return select_places(model, method), replaced
    if not isinstance(method, DeltaMethod):
        if not replaced:
            raise DeltafitError(
                f"The method {method} would train nothing: name the parameters of the head."
            )
        return (), replaced
    names = first_names(model)
    excluded = {name.rpartition(".")[0] for name, first in names.items() if first in replaced}
    targets = select_targets(
        model, method.target_modules,
        layers=method.layers, exclude=excluded, defaults=method.default_targets,
    )  # fmt: skip
    for target in targets:
        check_statistic(method, target, view_for(model, target, method))
    for pattern in method.patterns():
        if not any(means(pattern, target) for target in targets):
            raise UsageError(
                f"A setting is given for {pattern!r}, which is the end of no target's name. "
                f"Targets are {', '.join(targets[:3])}{' ...' * (len(targets) > 3)}"
            )
    return targets, replaced


def _replaced_names(model: nn.Module, method: Method, head: Sequence[str]) -> tuple[str, ...]:
    first = first_names(model)
    wanted = {*head, *method.trained_parameters(Parts(model))}
    for module_name in method.trained_modules if isinstance(method, DeltaMethod) else ():
        inside = [n for n in first if within(n, module_name)]
        if not inside:
            raise UsageError(
                f"trained_modules names {module_name!r}, which has no parameters in this model. "
                f"Its top modules are {', '.join(name for name, _ in model.named_children())}."
            )
        wanted.update(inside)
    _refuse_unknown(model, sorted(wanted - set(first)))
    chosen = {first[name] for name in wanted}
    replaced = tuple(name for name in dict.fromkeys(first.values()) if name in chosen)
    _refuse_quantised(model, replaced)
    _refuse_running_statistics(model, replaced)
    return replaced


def _refuse_unknown(model: nn.Module, unknown: Sequence[str]) -> None:
    buffers = dict(model.named_buffers())
    for name in unknown:
        if name in buffers:
            raise DeltafitError(
                f"{name!r} is a buffer, and an adapter holds parameters alone: a module that keeps "
                "running statistics cannot be trained whole here, nor an adapter loaded that did."
            )
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DeltafitError(f"The model has no parameter {unknown[0]!r}{more}.")


def _refuse_quantised(model: nn.Module, replaced: Sequence[str]) -> None:
    quantised = [name for name in replaced if not model.get_parameter(name).is_floating_point()]
    if quantised:
        raise DeltafitError(
            f"{quantised[0]!r} is quantised, and what is stored in few bits cannot be trained "
            "itself. Train an adapter or the head, or leave the base weights in float32."
        )


def _refuse_running_statistics(model: nn.Module, replaced: Sequence[str]) -> None:
    """Raise a DeltafitError if a module trained whole is, or holds, a norm that counts as it runs.

    Its statistics change in training and are no parameters: they would be lost.
    """
    left = tuple(set(base_parameters(model)) - set(replaced))
    for name, module in model.named_modules():
        if not getattr(module, "track_running_stats", False):
            continue
        segments = name.split(".")
        around = [".".join(segments[:end]) for end in range(len(segments) + 1)]
        if any(_is_whole(part, replaced, left) for part in around):
            raise DeltafitError(
                f"{name!r} keeps running statistics ({type(module).__name__}), which change in "
                "training and are no parameters, so an adapter would lose them. Train other "
                "modules, or use a norm without them, such as GroupNorm."
            )


def _is_whole(part: str, replaced: Sequence[str], left: Sequence[str]) -> bool:
    return any(within(n, part) for n in replaced) and not any(within(n, part) for n in left)


def _check_initial(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    replaced: Sequence[str],
    base: Mapping[str, nn.Parameter],
    keep_base: bool,
) -> None:
    unknown = [name for name in initial if name not in replaced]
    if unknown:
        raise DeltafitError(f"Starting values given for {unknown[0]!r}, which is not trained.")
    if initial and not keep_base:
        raise DeltafitError("Starting values need keep_base=True: they are not the base's.")
    other = [n for n, value in initial.items() if value.shape != base[n].shape]
    resized = {n: (len(base[n]), len(initial[n])) for n in other if _may_resize(model, n, base)}
    problems = [n for n in other if n not in resized or initial[n].shape[1:] != base[n].shape[1:]]
    if len(set(resized.values())) > 1 or not _whole_layers(resized, base):
        problems = other
    if problems:
        listed = "; ".join(
            f"{n!r} has shape {list(initial[n].shape)} and not {list(base[n].shape)}"
            for n in problems[:3]
        )
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DeltafitError(
            f"The adapter does not fit this base: {listed}{more}. Only a head's last linear layer "
            "may differ, in its number of outputs."
        )


def _may_resize(model: nn.Module, name: str, base: Mapping[str, nn.Parameter]) -> bool:
    module = name.rpartition(".")[0]
    in_block = any(stack.index_of(module) is not None for stack in repeated_blocks(model))
    return isinstance(model.get_submodule(module), nn.Linear) and not in_block


def _whole_layers(resized: Mapping[str, object], base: Mapping[str, nn.Parameter]) -> bool:
    """Return whether a resized layer's weight and bias are both resized."""
    modules = {name.rpartition(".")[0] for name in resized}
    return all(name in resized for name in base if name.rpartition(".")[0] in modules)


def _layer(
    model: nn.Module, name: str, method: Method, seed: int, statistic: Tensors
) -> tuple[LayerMethod, dict[str, Tensor]]:
    """Return the method as it applies to one module, and its tensors there."""
    assert isinstance(method, LayerMethod)
    module, view = model.get_submodule(name), view_for(model, name, method)
    resolved = method.for_module(name)

    def generator(tensor: str) -> Generator:
        return generator_for(seed, f"{name}.{tensor}")

    if isinstance(resolved, DeltaMethod):
        tensors = resolved.initialise_from(statistic, view, generator)
    else:
        tensors = resolved.initialise(view, generator)
    own = [n for n in tensors if hasattr(module, n) and not is_adapted(module)]
    if own:
        raise DeltafitError(f"{name} has a {own[0]} already: another library has adapted it.")
    device, dtype = next(module.parameters()).device, adapter_dtype(module)
    # Indices stay the integers that they are.
    moved = {
        n: t.to(device, dtype if t.is_floating_point() else t.dtype) for n, t in tensors.items()
    }
    return resolved, {n: t.contiguous() for n, t in moved.items()}
