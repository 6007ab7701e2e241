"""Which layers an adapter sits in: defaults by architecture, or the person's own choice."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from deltafit.adapters.candidates import Candidate, candidates
from deltafit.adapters.structure import (
    BlockStack,
    is_excluded,
    is_matrix,
    known_head,
    layer_kind,
    main_stack,
    repeated_blocks,
    within,
)
from deltafit.errors import UsageError
from deltafit.methods.checks import EXPRESSION, means

ALL_LINEAR = "all-linear"

# Query and value of the attention, or the one projection that holds both: Hu et al., "LoRA", 2021,
# section 4.2, and the same names as PEFT's table wherever that has the architecture.
_QUERY_VALUE = ("query", "value")
_Q_PROJ_V_PROJ = ("q_proj", "v_proj")
DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": _QUERY_VALUE,
    "roberta": _QUERY_VALUE,
    "xlm-roberta": _QUERY_VALUE,
    "electra": _QUERY_VALUE,
    "distilbert": ("q_lin", "v_lin"),
    "deberta-v2": ("query_proj", "value_proj"),  # DeBERTa v3 too
    "mpnet": ("q", "v"),
    "modernbert": ("Wqkv",),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "opt": _Q_PROJ_V_PROJ,
    "llama": _Q_PROJ_V_PROJ,
    "mistral": _Q_PROJ_V_PROJ,
    "qwen2": _Q_PROJ_V_PROJ,
    "qwen3": _Q_PROJ_V_PROJ,
    "gemma": _Q_PROJ_V_PROJ,
    "gemma2": _Q_PROJ_V_PROJ,
    "gemma3_text": _Q_PROJ_V_PROJ,
}


def select_targets(
    model: nn.Module,
    target_modules: str | tuple[str, ...] | None,
    *,
    layers: tuple[int, ...] | None = None,
    exclude: Collection[str] = (),
    defaults: Mapping[str, str | tuple[str, ...]] | None = None,
) -> tuple[str, ...]:
    """Return the full names of the modules to adapt, in the order of the module tree.

    Args:
        model: any module; nothing in it is changed or computed, so it may be on the meta device.
        target_modules: one of
            None, the architecture's default (``DEFAULT_TARGETS``), or by structure, every linear
            layer of the repeated blocks;
            "all-linear", every linear layer of the repeated blocks, or of the whole model but
            what is known to be its head where no blocks repeat (PEFT's includes poolers and
            projections around the blocks);
            any other string, a regular expression for the whole module name, as in PEFT, with or
            without the prefix ``re:``;
            a tuple of names, each matched by whole dotted segments at the end of a module name:
            "query" takes ``layer.0.attention.self.query`` and never ``query_proj``.
        layers: indices of the blocks to adapt, negative ones from the end; None for all. What is
            in no block is then not adapted.
        exclude: modules trained whole, such as the head; neither they nor what is in them is ever
            adapted.
        defaults: architecture → names, or an expression with the prefix ``re:``, in place of
            ``DEFAULT_TARGETS``.

    Raises:
        UsageError: a name, the expression or the layers match nothing; a name means something
            that cannot be adapted or is trained whole; the expression is broken; an index is out
            of range; the model gives no default; or it is itself a single layer.
    """
    if layer_kind(model) is not None:
        kind = type(model).__name__
        raise UsageError(
            f"The model is itself a {kind}, and an adapter sits on a module in a model, by its "
            f"name there. Adapt nn.Sequential(model), in which the {kind} is called 0."
        )
    stacks = [stack for stack in repeated_blocks(model) if not is_excluded(stack.name, exclude)]
    if target_modules is None:
        chosen = _default(model, stacks, exclude, DEFAULT_TARGETS if defaults is None else defaults)
    else:
        chosen = _choose(model, target_modules, stacks, exclude)
    if layers is None:
        return chosen
    kept = in_layers(model, chosen, stacks, layers)
    if not kept:
        raise UsageError(
            f"The layers {_listed(layers)} hold none of the modules that the targets name, such as "
            f"{chosen[0]}. Leave the layers out, or name targets inside them."
        )
    return kept


def matches(module_name: str, target: str) -> bool:
    """Return whether ``target`` equals the last whole segments of ``module_name``."""
    return module_name == target or module_name.endswith(f".{target}")


def _choose(
    model: nn.Module,
    target_modules: str | tuple[str, ...],
    stacks: list[BlockStack],
    exclude: Collection[str],
) -> tuple[str, ...]:
    if isinstance(target_modules, tuple):
        return _by_names(model, target_modules, exclude)
    if target_modules.lower() != ALL_LINEAR:
        return _by_regex(model, target_modules, exclude)
    chosen = (
        _linear_layers(model, stacks, exclude)
        if stacks
        else _linear_layers(model, [BlockStack("", ("",))], {*exclude, *known_head(model)})
    )
    if not chosen:
        raise UsageError(f"{type(model).__name__} has no linear layer to adapt outside its head.")
    return chosen


def _default(
    model: nn.Module,
    stacks: list[BlockStack],
    exclude: Collection[str],
    defaults: Mapping[str, str | tuple[str, ...]],
) -> tuple[str, ...]:
    architecture = getattr(getattr(model, "config", None), "model_type", None)
    names = defaults.get(str(architecture), ())
    names = (names,) if isinstance(names, str) else names
    linear = _linear_layers(model, stacks, exclude)
    known = tuple(module for module in linear if any(means(name, module) for name in names))
    if known or linear:
        return known or linear
    raise UsageError(
        f"{type(model).__name__} has no repeated blocks, so there is no default for what to adapt. "
        f"Name the target modules, or give {ALL_LINEAR!r}. {_offer(candidates(model, exclude))}"
    )


def _linear_layers(
    model: nn.Module, stacks: list[BlockStack], exclude: Collection[str]
) -> tuple[str, ...]:
    return tuple(
        name
        for name, module in model.named_modules()
        if is_matrix(module)
        and not is_excluded(name, exclude)
        and any(stack.index_of(name) is not None for stack in stacks)
    )


def _by_names(
    model: nn.Module, targets: tuple[str, ...], exclude: Collection[str]
) -> tuple[str, ...]:
    if not targets:
        raise UsageError(f"No target module is named. {_offer(candidates(model, exclude))}")
    modules = dict(model.named_modules())
    chosen: set[str] = set()
    problems: list[str] = []
    for target in targets:
        found = [name for name in modules if name and matches(name, target)]
        free = [name for name in found if not is_excluded(name, exclude)]
        fixed = [name for name in free if layer_kind(modules[name]) is None]
        if not found:
            problems.append(_nothing_matches(model, target, exclude))
        elif not free:
            problems.append(_trained_whole(target, found[0]))
        elif fixed:
            problems.append(_not_adaptable(model, target, fixed, exclude))
        chosen.update(free)
    if problems:
        raise UsageError(" ".join(problems))
    return tuple(name for name in modules if name in chosen)


def _by_regex(model: nn.Module, expression: str, exclude: Collection[str]) -> tuple[str, ...]:
    pattern = expression.removeprefix(EXPRESSION)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"The target {pattern!r} is not a regular expression: {error.msg} at position "
            f"{error.pos}."
        ) from None
    found = [name for name, _ in model.named_modules() if name and compiled.fullmatch(name)]
    free = [name for name in found if not is_excluded(name, exclude)]
    # An expression such as .*attention.* takes dropouts and containers by the way; names may not.
    chosen = tuple(name for name in free if layer_kind(model.get_submodule(name)) is not None)
    if chosen:
        return chosen
    if not found:
        hint = " A string is a regular expression for the whole module name, such as .*\\.query."
        raise UsageError(_nothing_matches(model, pattern, exclude) + hint)
    if not free:
        raise UsageError(_trained_whole(pattern, found[0]))
    raise UsageError(_not_adaptable(model, pattern, free, exclude))


def in_layers(
    model: nn.Module, chosen: tuple[str, ...], stacks: list[BlockStack], layers: tuple[int, ...]
) -> tuple[str, ...]:
    """Return those of ``chosen`` that are in the blocks with these indices.

    Raises:
        UsageError: an index is out of range, or there is none.
    """
    main = main_stack(model)
    wrong = [index for index in layers if not -main.length <= index < main.length]
    if wrong or not layers:
        stated = f"There is no layer {_listed(wrong)}" if wrong else "No layer is chosen"
        raise UsageError(
            f"{stated}: {main.name or type(model).__name__} has {main.length} blocks, "
            f"0 to {main.length - 1}, or -{main.length} to -1 from the end."
        )

    def kept(name: str) -> bool:
        places = ((stack.index_of(name), stack.length) for stack in stacks)
        return any(
            place is not None and (place in layers or place - length in layers)
            for place, length in places
        )

    return tuple(filter(kept, chosen))


def _nothing_matches(model: nn.Module, target: str, exclude: Collection[str]) -> str:
    every = {candidate.name: candidate for candidate in candidates(model, exclude)}
    wanted = re.split(r"\W+", target.rstrip("$"))[-1].lower()  # the last word, of a regex too
    lowered = {name.lower(): name for name in every}
    near = difflib.get_close_matches(wanted, lowered, n=4, cutoff=0.5)
    offered = [every[lowered[name]] for name in near]
    return f"The target {target!r} matches no module. {_offer(offered or every.values())}"


def _not_adaptable(
    model: nn.Module, target: str, found: list[str], exclude: Collection[str]
) -> str:
    kinds = Counter(type(model.get_submodule(name)).__name__ for name in found)
    described = ", ".join(f"{kind} ×{count}" for kind, count in kinds.items())
    inside = [
        candidate
        for candidate in candidates(model, exclude)
        if any(within(module, name) for module in candidate.modules for name in found)
    ]
    return f"The target {target!r} means modules that cannot be adapted ({described}). " + (
        _offer(inside, "Inside them are") if inside else _offer(candidates(model, exclude))
    )


def _trained_whole(target: str, found: str) -> str:
    return (
        f"The target {target!r} means {found}, which is trained and saved whole and so cannot be "
        "adapted as well. Leave it out of the targets."
    )


def _offer(offered: Iterable[Candidate], said: str = "There are") -> str:
    names = ", ".join(map(str, offered))
    return f"{said} {names}." if names else "No layer of this model can be adapted."


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
