"""The parameters of a model by part, as replacements choose among them."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from torch import nn

from deltafit.adapters.candidates import leaf_name
from deltafit.adapters.model import base_parameters
from deltafit.adapters.structure import (
    BlockStack,
    final_norm,
    is_excluded,
    known_head,
    main_stack,
    normalises,
    parameters_of_last_blocks,
    repeated_blocks,
)
from deltafit.adapters.targets import matches
from deltafit.adapters.tied import first_names, refuse_partly
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods.checks import EXPRESSION

_SHOWN = 8  # names offered where none is near


class Parts:
    """The base parameters of a model; nothing is computed, so the meta device will do.

    Args:
        model: any module, adapted or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kind = type(model).__name__

    def every(self) -> tuple[str, ...]:
        """Return every parameter's name."""
        return tuple(base_parameters(self._model))

    def last_blocks(self, count: int) -> tuple[str, ...]:
        """Return the names of the last blocks' parameters.

        Raises:
            DeltafitError: the model has no repeated blocks, or uses one for several layers.
            UsageError: there are not ``count`` blocks.
        """
        return parameters_of_last_blocks(self._model, count)

    def above_blocks(self, count: int) -> tuple[str, ...]:
        """Return the names of all but the first ``count`` blocks and what feeds them.

        That is what stands before the blocks in the module tree; and embeddings, with the norms
        beside them, wherever they stand (DeBERTa's relative positions stand behind).

        Raises:
            DeltafitError: the model has no repeated blocks, or uses one for several layers; or a
                tied parameter would be frozen in one place and trained in another.
            UsageError: there are not more than ``count`` blocks.
        """
        stack = main_stack(self._model)
        if stack.shared:
            raise DeltafitError(
                f"{self._kind} uses the same block for several layers ({stack.name}), so its first "
                "blocks cannot be frozen alone. Train the head, an adapter, or all parameters."
            )
        if count >= stack.length:
            raise UsageError(
                f"{stack.name or self._kind} has {stack.length} blocks, so with the first {count} "
                f"frozen none is left to train. Give a count from 0 to {stack.length - 1}, or "
                "train the head alone."
            )
        names = list(first_names(self._model))
        start = next(place for place, n in enumerate(names) if is_excluded(n, stack.blocks[:1]))
        # OPT's final norm and XLM-RoBERTa's head stand before the blocks.
        norm = final_norm(self._model)
        behind = [*known_head(self._model), *([norm] if norm else [])]
        frozen = [*self._embeddings(stack, behind), *stack.blocks[:count]]
        above = tuple(
            name
            for place, name in enumerate(names)
            if is_excluded(name, behind) or (place >= start and not is_excluded(name, frozen))
        )
        refuse_partly(self._model, above)
        return above

    def biases(self) -> tuple[str, ...]:
        """Return the names of all biases, told by the word in a parameter's own name.

        ``bias``, and such as ``in_proj_bias`` and ``q_bias``.

        Raises:
            UsageError: the blocks have none.
        """
        names = tuple(n for n in self.every() if "bias" in n.rpartition(".")[2].split("_"))
        self._refuse_without(
            names,
            "biases",
            "Many newer models leave them out. Train its norms, or an adapter such as lora.",
        )
        return names

    def norms(self) -> tuple[str, ...]:
        """Return the names of the parameters of normalisation layers, told by their classes.

        Raises:
            UsageError: the blocks have none.
        """
        norms = {name for name, module in self._model.named_modules() if normalises(module)}
        names = tuple(name for name in self.every() if name.rpartition(".")[0] in norms)
        self._refuse_without(
            names, "normalisation layers with parameters", "Train an adapter such as lora."
        )
        return names

    def in_modules(self, pattern: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of all parameters in the modules that ``pattern`` chooses.

        Args:
            pattern: names, each matched by whole dotted segments at the end of a module's name; or
                a regular expression for the whole of it, with the prefix ``re:``.

        Raises:
            UsageError: a name, or the expression, matches no module that has parameters, or the
                expression is broken.
            DeltafitError: a tied parameter is chosen in one place and not in another.
        """
        names = tuple(first_names(self._model))
        chosen = self._modules(pattern, names)
        inside = tuple(name for name in names if is_excluded(name, chosen))
        refuse_partly(self._model, inside)
        return inside

    def _embeddings(self, stack: BlockStack, behind: Collection[str]) -> list[str]:
        """Return the embeddings outside the stack, and the norms beside one but those behind."""
        outside = {n: m for n, m in self._model.named_modules() if stack.index_of(n) is None}
        tables = [name for name, module in outside.items() if isinstance(module, nn.Embedding)]
        places = {name.rpartition(".")[0] for name in tables}
        norms = [
            name
            for name, module in outside.items()
            if normalises(module) and name.rpartition(".")[0] in places and name not in behind
        ]
        return tables + norms

    def _refuse_without(self, names: Sequence[str], what: str, advice: str) -> None:
        """Raise a UsageError if the blocks, or the model where none repeat, have no such names."""
        stacks = repeated_blocks(self._model)
        if names and not stacks:
            return
        if not any(stack.index_of(name) is not None for stack in stacks for name in names):
            where = f" in its blocks ({', '.join(stack.name for stack in stacks)})"
            raise UsageError(f"{self._kind} has no {what}{where if stacks else ''}. {advice}")

    def _modules(self, pattern: str | tuple[str, ...], parameters: Sequence[str]) -> set[str]:
        holders = _holders(parameters)
        if isinstance(pattern, str):
            expression = _compiled(pattern.removeprefix(EXPRESSION))
            found = {holder for holder in holders if expression.fullmatch(holder)}
            if not found:
                raise UsageError(
                    f"The expression {expression.pattern!r} matches no module of {self._kind} that "
                    f"has parameters. {_offer(expression.pattern, holders)} It is matched with a "
                    f"module's whole name, such as {holders[-1]}."
                )
            return found
        by_name = {name: {h for h in holders if matches(h, name)} for name in pattern}
        problems = [
            f"{name!r} names no module of {self._kind} that has parameters. {_offer(name, holders)}"
            for name, found in by_name.items()
            if not found
        ]
        if problems:
            raise UsageError(" ".join(problems))
        return set().union(*by_name.values())


def _holders(parameters: Collection[str]) -> list[str]:
    """Return the names of all modules that the parameters are in, but the model's own."""
    split = [name.split(".") for name in parameters]
    return list(
        dict.fromkeys(
            ".".join(segments[:end]) for segments in split for end in range(1, len(segments))
        )
    )


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise UsageError(
            f"The pattern {expression!r} is not a regular expression: {error.msg} at position "
            f"{error.pos}."
        ) from None


def _offer(wanted: str, holders: Sequence[str]) -> str:
    """Return a sentence with the names nearest to the last word of what was wanted."""
    leaves = {leaf_name(holder).lower(): leaf_name(holder) for holder in holders}
    word = re.split(r"\W+", wanted.rstrip("$"))[-1].lower()
    near = [leaves[name] for name in get_close_matches(word, leaves, n=4, cutoff=0.5)]
    if near:
        return f"Near it are {', '.join(near)}."
    more = " ..." if len(leaves) > _SHOWN else ""
    return f"There are {', '.join(list(leaves.values())[:_SHOWN])}{more}."
