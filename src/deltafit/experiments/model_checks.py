"""What the doctor asks of the model: whether it loads, what would be adapted, and its head."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from deltafit.adapters import check_fits
from deltafit.adapters.candidates import leaf_name
from deltafit.adapters.structure import main_stack, repeated_blocks
from deltafit.data import resolve_model
from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.findings import Case, Finding, listed
from deltafit.methods import Method
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
    partial: dict[str, list[str]] = defaultdict(list)
    for method, rows in methods.items():
        names = [case.arms[row].name for row in rows]
        key = case.method(rows[0])
        try:
            found, whole = check_fits(network, method, head=head)
            longest_text(case.configs[rows[0]], network)
        except DeltafitError as error:
            remedy = f"Change {key}: `deltafit inspect {case.recipe.model}` shows what there is."
            yield Finding("error", "targets", str(error), remedy, listed(names))
            continue
        if not head or not set(head) <= set(whole):
            yield Finding(
                "error",
                "head",
                f"{method} would leave the head as it starts, so that it could learn no class.",
                f"Change {key}, or {case.change('head.head', 'mean')}",
                listed(names),
            )
        if getattr(method, "layers", None) is None:
            for sentence in _in_some_blocks(model.classifier, found):
                partial[sentence] += names
    for sentence, names in partial.items():
        remedy = "Nothing, if that is meant; else name targets that all blocks have."
        yield Finding("note", "targets", sentence, remedy, listed(names))


def _in_some_blocks(classifier: Classifier, found: Sequence[str]) -> Iterator[str]:
    if not repeated_blocks(classifier.model):
        return
    stack = main_stack(classifier.model)
    blocks: dict[str, set[int]] = defaultdict(set)
    for name in found:
        index = stack.index_of(name)
        if index is not None:
            blocks[leaf_name(name)].add(index)
    for leaf, inside in blocks.items():
        if len(inside) < stack.length:
            yield (
                f"Layers called {leaf} are adapted in {len(inside)} of {stack.length} blocks: "
                f"{', '.join(map(str, sorted(inside)))}."
            )


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
    anew = f"{case.change('head.head', 'mean')} starts one anew"
    named = ", ".join(theirs[:_NAMED]) + (", …" if len(theirs) > _NAMED else "")
    if len(theirs) != len(ours):
        yield Finding(
            "note",
            "head",
            f"The checkpoint's own head is of {len(theirs)} classes ({named}) and yours of "
            f"{len(ours)}: its last layer starts anew.",
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
