"""What the doctor asks of the model: whether it loads, what would be adapted, and its head."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from deltafit.adapters import check_fits
from deltafit.adapters.candidates import leaf_name
from deltafit.adapters.structure import BlockStack, main_stack, repeated_blocks
from deltafit.adapters.targets import ALL_LINEAR
from deltafit.data import resolve_model
from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.findings import Case, Finding, listed
from deltafit.methods import Method
from deltafit.methods.values import defaults
from deltafit.tasks.classification import Classifier, HeadKind, HeadSettings, load_classifier
from deltafit.tasks.inference import tokenise_for
from deltafit.tasks.loading import load_config
from deltafit.training.preparation import longest_text

UNCUT = 1_000_000
"""Tokens, more than any text has."""

_SAMPLED = 2000  # texts that are tokenised
_NAMED = 4


@dataclass(frozen=True)
class Loaded:
    """A case's model, not adapted, with a sample of its texts.

    Attributes:
        classifier: with the head that the runs train.
        rows: token ids of the texts, uncut, evenly from all parts.
        lengths: row of the recipe → tokens that its runs cut texts to; without those whose method
            leaves no position for a text.
    """

    classifier: Classifier
    rows: Sequence[Sequence[int]]
    lengths: Mapping[int, int]


def load_for(case: Case) -> Classifier:
    """Load a case's model.

    Raises:
        DeltafitError: it cannot be loaded.
        UsageError: it cannot have such a head.
    """
    head = case.recipe.head.head
    kind: HeadKind = "mean" if head == "auto" else head
    names = case.splits.train.label_names
    return load_classifier(resolve_model(case.recipe.model), names, HeadSettings(kind), seed=0)


def sampled(case: Case, classifier: Classifier) -> Loaded:
    """Tokenise some of a case's texts for its model.

    Raises:
        DeltafitError: a text cannot be used.
    """
    places = [(part, index) for part in case.splits.parts().values() for index in range(len(part))]
    sample = places[:: math.ceil(len(places) / _SAMPLED)]
    texts = [part.texts[index] for part, index in sample]
    tokens = tokenise_for(
        classifier, texts, UNCUT, lambda number: sample[number][0].place(sample[number][1])
    )
    lengths = {}
    for row, config in enumerate(case.configs):
        with suppress(UsageError):  # which `targets` tells
            lengths[row] = longest_text(config, classifier.model)
    return Loaded(classifier, tokens.input_ids, lengths)


def targets(case: Case, model: Loaded) -> Iterator[Finding]:
    """What each method adapts: nothing, only some of the blocks, or not the head."""
    network, head = model.classifier.model, model.classifier.head_parameters
    methods: dict[Method, list[int]] = defaultdict(list)
    for row, config in enumerate(case.configs):
        methods[config.method].append(row)
    partial: dict[tuple[str, str], list[str]] = defaultdict(list)
    for method, rows in methods.items():
        names = [case.arms[row].name for row in rows]
        try:
            found, whole = check_fits(network, method, head=head)
            longest_text(case.configs[rows[0]], network)
        except DeltafitError as error:
            remedy = " or ".join(_fitting(case, rows[0], model.classifier))
            yield Finding("error", "targets", str(error), remedy, listed(names))
            continue
        if not head or not set(head) <= set(whole):
            yield Finding(
                "error",
                "head",
                f"{method} would leave the head as it starts, so that it could learn no class.",
                case.change("head.head", "mean"),
                listed(names),
            )
        if getattr(method, "layers", None) is None:
            for sentence in _in_some_blocks(model.classifier, found):
                leaves = tuple(dict.fromkeys(map(leaf_name, found)))
                remedy = case.method(rows[0], target_modules=leaves)
                partial[sentence, f"{remedy} (unless it is meant so)"] += names
    for (sentence, remedy), names in partial.items():
        yield Finding("note", "targets", sentence, remedy, listed(names))


def _fitting(case: Case, row: int, classifier: Classifier) -> Iterator[str]:
    """Yield flags that make a row's method one that fits, and the command that shows what would."""
    config, network = case.configs[row], classifier.model
    settings = defaults(config.method)
    changes: list[dict[str, Any]] = []
    if "target_modules" in settings:
        changes += [{"target_modules": ALL_LINEAR}, {"target_modules": ALL_LINEAR, "layers": None}]
    if (size := config.method.size_setting) is not None:
        changes += [{size: settings[size]}, {size: 1}]
    for change in changes:
        other = replace(config, method=replace(config.method, **change))
        with suppress(DeltafitError):
            check_fits(network, other.method, head=classifier.head_parameters)
            longest_text(other, network)
            yield case.method(row, **change)
            break
    yield f"{case.asked_method(row)} with what is shown by: deltafit inspect {case.recipe.model}"


def _in_some_blocks(classifier: Classifier, found: Sequence[str]) -> Iterator[str]:
    """Yield sentences on layers that are adapted in some of the blocks that have them."""
    if not repeated_blocks(classifier.model):
        return
    stack = main_stack(classifier.model)
    every = _blocks_of(stack, [name for name, _ in classifier.model.named_modules()])
    for leaf, inside in _blocks_of(stack, found).items():
        if len(inside) < len(every[leaf]):
            yield (
                f"Layers called {leaf} are adapted in {len(inside)} of {stack.length} blocks: "
                f"{', '.join(map(str, sorted(inside)))}."
            )


def _blocks_of(stack: BlockStack, names: Sequence[str]) -> dict[str, set[int]]:
    """Return in which blocks there are modules of each last name."""
    blocks: dict[str, set[int]] = defaultdict(set)
    for name in names:
        index = stack.index_of(name)
        if index is not None:
            blocks[leaf_name(name)].add(index)
    return blocks


def head_of_checkpoint(case: Case, model: Loaded) -> Iterator[Finding]:
    """A head that the checkpoint brings: its classes may be others than those of the texts."""
    config = load_config(model.classifier.source)
    brings = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if not brings or model.classifier.head.kind != "architecture":
        return
    theirs = [str(config.id2label[index]) for index in sorted(config.id2label)]
    ours = list(model.classifier.label_names)
    if theirs == ours:
        return
    anew = f"{case.change('head.head', 'mean')} (which starts one anew)"
    named = ", ".join(theirs[:_NAMED]) + (", …" if len(theirs) > _NAMED else "")
    if len(theirs) != len(ours):
        yield Finding(
            "note",
            "head",
            f"The checkpoint's own head is of {len(theirs)} classes ({named}) and yours of "
            f"{len(ours)}: its last layer starts anew.",
            anew,
        )
    else:
        mixed = sorted(theirs) == sorted(ours)
        order = "in another order" if mixed else "by other names"
        yield Finding(
            "warning" if mixed else "note",
            "head",
            f"Training starts from the checkpoint's own head, whose {len(theirs)} classes are "
            f"yours {order} ({named}).",
            anew,
        )


ModelCheck = Callable[[Case, Loaded], Iterator[Finding]]

MODEL_CHECKS: tuple[ModelCheck, ...] = (targets, head_of_checkpoint)
