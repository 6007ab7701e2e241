"""What runs on the same texts share: frozen features, and what frozen layers gave."""

import time
from functools import cached_property

import numpy as np

from deltafit.data import ModelSource, Splits, resolve_model
from deltafit.engine import StateStores
from deltafit.tasks.classification import HeadSettings, load_classifier
from deltafit.tasks.inference import compute_features, tokenise_for
from deltafit.tasks.pooling import POOLINGS, Pooling
from deltafit.tasks.positions import usable_length
from deltafit.tasks.probe import Probe, logistic_probe
from deltafit.training.progress import Counted, Reporter

Features = dict[str, dict[Pooling, np.ndarray]]


class FrozenFeatures:
    """Pooled features of the untouched model, and linear probes on them.

    Nothing is computed before it is asked for, and nothing twice.

    Args:
        model: path, catalogue name or hub name.
        splits: the texts.
        max_length: tokens a text is cut to.
        reporter: told how the work goes.

    Attributes:
        seconds: what computing the features has taken; 0 before.
        states: of frozen layers for the training rows, of the runs so far. Features are not made
            from them: a baseline would get for nothing what a run has paid for, and how it rounds
            would depend on what ran before it.
    """

    def __init__(self, model: str, splits: Splits, max_length: int, reporter: Reporter) -> None:
        self.source: ModelSource = resolve_model(model)
        self.splits, self.max_length, self.reporter = splits, max_length, reporter
        self.seconds, self.states = 0.0, StateStores()
        self._probes: dict[Pooling, Probe] = {}

    @cached_property
    def features(self) -> Features:
        """Features ``[texts, width]`` by part and pooling."""
        began = time.perf_counter()
        classifier = load_classifier(
            self.source, self.splits.train.label_names, HeadSettings("mean"), seed=0
        )
        length = usable_length(classifier.model, self.max_length)
        # A decoder's first token has read nothing but itself.
        poolings = tuple(p for p in POOLINGS if p != "cls" or not classifier.decoder)
        parts = self.splits.parts()
        advance = Counted(self.reporter, "frozen features", sum(map(len, parts.values())))
        result = {
            name: compute_features(
                classifier,
                tokenise_for(classifier, part.texts, length, part.place).input_ids,
                poolings=poolings,
                progress=advance,
            )
            for name, part in parts.items()
        }
        self.seconds = time.perf_counter() - began
        return result

    def probe(self, pooling: Pooling) -> Probe:
        """Return logistic regression on one pooling, its penalty chosen on the validation part."""
        if pooling not in self._probes:
            validation = self.splits.validation
            self._probes[pooling] = logistic_probe(
                self.features["train"][pooling],
                np.asarray(self.splits.train.labels),
                classes=len(self.splits.train.label_names),
                validation=None
                if validation is None
                else (self.features["validation"][pooling], np.asarray(validation.labels)),
            )
        return self._probes[pooling]

    def best_pooling(self) -> Pooling:
        """Return the pooling whose probe does best on held-out rows."""
        poolings = self.features["train"]
        return max(poolings, key=lambda pooling: self.probe(pooling).validation_accuracy)
