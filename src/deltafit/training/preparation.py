"""A run made ready: model, head and tokens of the texts, nothing trained yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.adapters import check_fits, quantise
from deltafit.data import Splits, resolve_model
from deltafit.errors import UsageError
from deltafit.methods import Method
from deltafit.methods.delta import corrects_rounding
from deltafit.prediction.fingerprint import fingerprint
from deltafit.tasks.classification import (
    Classifier,
    HeadKind,
    HeadSettings,
    classifier_structure,
    load_classifier,
)
from deltafit.tasks.inference import tokenise_for
from deltafit.tasks.positions import usable_length
from deltafit.training.config import RunConfig
from deltafit.training.course import Examples
from deltafit.training.features import FrozenFeatures
from deltafit.training.progress import Reporter
from deltafit.training.settings import HeadConfig


@dataclass
class Prepared:
    """A run with everything loaded and nothing trained.

    Attributes:
        classifier: not adapted; its base quantised, if that was asked for.
        examples: tokenised texts by part.
        truncated: how many texts were cut, by part.
        max_length: tokens that texts were cut to.
        base_fingerprint: of the classifier without its head, as it was loaded.
        rounding: what quantising took from the weights of which a method must know that. It is as
            large as they were, and let go of once the adapters stand.
    """

    classifier: Classifier
    examples: dict[str, Examples]
    truncated: dict[str, int]
    max_length: int
    base_fingerprint: dict[str, Any]
    rounding: dict[str, dict[str, Tensor]]


def structure_of(model: str, head: HeadConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a classifier's modules without weights, and the names of its head's parameters.

    Raises:
        DeltafitError: there is no such model.
    """
    kind: HeadKind = "mean" if head.head == "auto" else head.head
    return classifier_structure(resolve_model(model), HeadSettings(kind))


def load_for(config: RunConfig, splits: Splits, features: FrozenFeatures) -> Classifier:
    """Load the base model of a run, with the head that the run starts from.

    Args:
        config: the run.
        splits: the texts, for the label names.
        features: of the same texts; they choose an automatic head, and a probe starts from them.

    Raises:
        DeltafitError: the model cannot be loaded.
    """
    kind: HeadKind = features.best_pooling() if config.head.head == "auto" else config.head.head
    classifier = load_classifier(
        features.source,
        splits.train.label_names,
        HeadSettings(kind, config.head.head_dropout),
        seed=config.settings.seed,
    )
    if config.head.head_start == "probe":
        assert kind != "architecture"
        probe = features.probe(kind)
        head = classifier.model.get_submodule("classifier")
        state = {"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)}
        head.load_state_dict(state)
    return classifier


def longest_text(config: RunConfig, model: nn.Module) -> int:
    """Return to how many tokens a run cuts texts: as asked for, or as many as there are places for.

    Args:
        config: the run.
        model: its classifier's; without weights will do.

    Raises:
        UsageError: the method leaves no position for a text.
    """
    taken = config.method.taken_positions
    length = usable_length(model, config.settings.max_length + taken) - taken
    if length < 1:
        raise UsageError(
            f"{config.method} takes all positions that {config.model} has. Give it fewer tokens."
        )
    return length


def prepare(
    config: RunConfig,
    splits: Splits,
    features: FrozenFeatures,
    reporter: Reporter,
    *,
    others: Sequence[Method] = (),
) -> Prepared:
    """Load a run's model and tokenise its texts; tell the person where they are cut.

    Args:
        config: the run.
        splits: its texts.
        features: of the same texts.
        reporter: told of what is cut.
        others: methods of other runs that share the model.

    Raises:
        DeltafitError: the model or a text cannot be used.
        UsageError: the method leaves no position for a text.
    """
    classifier = load_for(config, splits, features)
    wanted, taken = config.settings.max_length, config.method.taken_positions
    length = longest_text(config, classifier.model)
    if length < wanted:
        beside = f" beside the {taken} of {config.method}" if taken else ""
        reporter.say(
            f"{config.model} takes texts of at most {length} tokens{beside}; the maximum length of "
            f"{wanted} is lowered to that."
        )
    examples, truncated = {}, {}
    for name, part in splits.parts().items():
        tokens = tokenise_for(classifier, part.texts, length, part.place)
        examples[name] = Examples(tokens.input_ids, part.labels)
        truncated[name] = tokens.truncated
    cut, total = sum(truncated.values()), sum(map(len, examples.values()))
    if cut:
        reporter.say(f"{cut / total:.1%} of texts ({cut}) were cut to {length} tokens.")
    base = fingerprint(classifier.model, classifier.head_parameters)
    rounding = {}
    if config.settings.base_weights != "float32":
        corrected = _corrected(classifier, (config.method, *others))
        rounding = quantise(classifier.model, config.settings.base_weights, errors_of=corrected)
    return Prepared(classifier, examples, truncated, length, base, rounding)


def _corrected(classifier: Classifier, methods: Sequence[Method]) -> set[str]:
    """Return the names of modules whose rounding a method makes up for."""
    return {
        target
        for method in methods
        if corrects_rounding(method)
        for target in check_fits(classifier.model, method, head=classifier.head_parameters)[0]
    }
