"""A made-up comparison for the tests of the report's page: rows, answers, losses, changes."""

from typing import Any

import numpy as np

from deltafit.adapters.movement import MatrixChange
from deltafit.experiments.answers import Answers, Evidence
from deltafit.experiments.class_statistics import macro_f1_interval
from deltafit.experiments.differences import with_differences
from deltafit.experiments.statistics import mean_accuracy_interval
from deltafit.methods import LoRA, Method
from tests.experiments.rows import row, run

Rows = list[dict[str, Any]]
HOSTILE = "<script>alert('x')</script> & \"quoted\" $\\frac{ ]]>"


def said(labels: np.ndarray, accuracy: float, seeds: int, seed: int, classes: int) -> Answers:
    """Answers of about an accuracy; rows differ in ease, the same for all methods."""
    ease = np.random.default_rng(0).random(len(labels))
    generator = np.random.default_rng(seed)
    right = ease + 0.02 * generator.normal(size=(seeds, len(labels))) < accuracy
    wrong = (labels + generator.integers(1, classes, size=(seeds, len(labels)))) % classes
    confidence = np.clip(accuracy + 0.15 * generator.normal(size=right.shape), 1 / classes, 1)
    return Answers(np.where(right, labels, wrong), confidence)


def made_up(
    accuracies: dict[str | Method, float],
    *,
    classes: int = 3,
    count: int = 400,
    seeds: int = 2,
    names: tuple[str, ...] | None = None,
) -> tuple[Rows, Evidence]:
    """Rows and evidence of methods with about these accuracies; texts are baselines' names.

    The last class is rare in training.
    """
    labels = np.random.default_rng(1).integers(0, classes, size=count)
    names = names or tuple(f"class {index}" for index in range(classes))
    answers = {}
    rows: Rows = []
    for index, (method, accuracy) in enumerate(accuracies.items()):
        name = str(method)
        trained = isinstance(method, Method)
        found = said(labels, accuracy, seeds if trained else 1, index, classes)
        answers[name] = found if "SVM" not in name else Answers(found.predicted, None)
        correct = found.predicted == labels
        known: dict[str, Any] = {"count": count, "seeds": len(correct)}
        known |= {"interval": mean_accuracy_interval(correct)}
        known |= {"macro_f1_interval": macro_f1_interval(labels, found.predicted, classes)}
        after = float(correct.mean())
        if isinstance(method, Method):
            trainable = 22_742_861 if method.result_name == "all" else 8000 * (index + 1)
            known |= {"trainable": trainable, "seconds": 100.0 * (index + 1)}
            known |= {"settings": method.to_dict(), "seconds_range": [90.0 * (index + 1)] * 2}
            rows.append(run(name, after, None, **known, result_name=method.result_name))
        else:
            rows.append(row(name, "baseline", after, None, **known, seconds=2.0))
    rows = with_differences(rows, [answers[each["name"]].predicted == labels for each in rows])
    changes = {
        str(method): tuple(
            MatrixChange(f"encoder.layer.{i}.attention.self.{m}", (384, 384), 0.3 + i, 20.0, 3.2)
            for i in range(6)
            for m in ("query", "value")
        )
        for method in accuracies
        if isinstance(method, LoRA)
    }
    even = count // classes
    counts = (*[even] * (classes - 1), even // 5)
    runs = {name: f"{name}, seed 0" for name in changes}
    return rows, Evidence(labels, names, counts, answers, changes, runs)


def losses(rows: Rows) -> dict[str, list[list[dict[str, float]]]]:
    """Curves of as many seeds as a row has, which differ."""
    return {
        each["name"]: [
            [
                {"step": s, "train_loss": 3 / s + seed, "validation_loss": 0.5 + 2 / s + seed}
                for s in range(1, 30)
            ]
            for seed in range(each["seeds"])
        ]
        for each in rows
        if each["kind"] == "run"
    }
