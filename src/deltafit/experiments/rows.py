"""Rows of a comparison: baselines and runs, each with what it got right, and their differences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltafit.data import LabelledTexts, Splits
from deltafit.errors import DeltafitError
from deltafit.experiments.baselines import majority_baseline, tfidf_svm
from deltafit.experiments.statistics import paired_over_seeds
from deltafit.files import read_tensors
from deltafit.methods import Method
from deltafit.tasks.metrics import accuracy_interval, classification_metrics
from deltafit.training.features import FrozenFeatures
from deltafit.training.progress import Reporter
from deltafit.training.run import PREDICTIONS_FILE

Row = dict[str, Any]


@dataclass
class Candidate:
    """A row before it is compared: which of the judged rows it got right, ``[seeds, rows]``."""

    row: Row
    correct: np.ndarray


def baselines(
    splits: Splits, judged: str, features: FrozenFeatures, seed: int, reporter: Reporter
) -> list[Candidate]:
    """Return the cheap baselines, judged on one part; see ``deltafit.experiments.baselines``."""
    train, part = splits.train, splits.parts()[judged]
    names = train.label_names
    reporter.say("cheap baselines: majority class, TF-IDF + linear SVM, frozen features")
    majority = majority_baseline(train.labels, len(part), len(names))
    svm = tfidf_svm(train.texts, train.labels, part.texts, num_classes=len(names), seed=seed)
    pooling = features.best_pooling()
    probe = features.probe(pooling)
    logits = probe.logits(features.features[judged][pooling])
    note = f"{pooling} pooling and C={probe.C:g}, chosen on held-out rows"
    return [
        _baseline("majority class", "majority", majority, part, 0.0),
        _baseline("TF-IDF + linear SVM", "tfidf_svm", svm.scores, part, svm.seconds),
        _baseline(
            "frozen features + logistic regression", "frozen_probe", logits, part,
            features.seconds, note,
        ),
    ]  # fmt: skip


def _baseline(
    name: str,
    result_name: str,
    scores: np.ndarray,
    part: LabelledTexts,
    seconds: float,
    *notes: str,
) -> Candidate:
    labels = np.asarray(part.labels)
    metrics = classification_metrics(labels, scores, part.label_names)
    row = _row(name, "baseline", result_name, [metrics], list(notes))
    return Candidate({**row, "seconds": seconds}, (scores.argmax(1) == labels)[None])


def _row(
    name: str, kind: str, result_name: str, metrics: Sequence[dict[str, Any]], notes: list[str]
) -> Row:
    accuracy = float(np.mean([figures["accuracy"] for figures in metrics]))
    count = int(metrics[0]["count"])
    unknown = ("before", "trainable", "total", "seconds", "examples_per_second")
    return {
        **dict.fromkeys((*unknown, "peak_memory_bytes", "saved_bytes")),
        "name": name,
        "kind": kind,
        "result_name": result_name,
        "metric_name": "accuracy",
        "after": accuracy,
        "interval": accuracy_interval(round(accuracy * count), count),
        "macro_f1": float(np.mean([figures["macro_f1"] for figures in metrics])),
        "seeds": len(metrics),
        "notes": notes,
    }


def candidate_of(
    method: Method, runs: Sequence[tuple[Path, dict[str, Any]]], judged: str, splits: Splits
) -> Candidate:
    """Return the row of a method from its finished runs, one a seed.

    Raises:
        DeltafitError: a run's stored predictions are not of these splits.
    """
    after = [metrics["after"][judged] for _, metrics in runs]
    costs = [metrics["costs"] for _, metrics in runs]
    notes = list(dict.fromkeys(note for _, metrics in runs for note in metrics["notes"]))
    if judged == "validation":
        notes.append("judged on the validation rows, which also chose its checkpoint")
    clean = after[0].get("without_duplicates")
    if clean:
        share = float(np.mean([figures["without_duplicates"]["accuracy"] for figures in after]))
        notes.append(
            f"accuracy {100 * share:.1f} % without the {clean['removed']} rows that also stand in "
            "training"
        )
    row = _row(str(method), "run", method.result_name, after, notes)
    row |= {
        "before": float(np.mean([metrics["before"][judged]["accuracy"] for _, metrics in runs])),
        "trainable": costs[0]["trainable_parameters"],
        "total": costs[0]["total_parameters"],
        "seconds": float(np.mean([cost["training_seconds"] for cost in costs])),
        "examples_per_second": float(np.mean([cost["examples_per_second"] for cost in costs])),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
        "saved_bytes": costs[0]["saved_bytes"],
    }
    labels = np.asarray(splits.parts()[judged].labels)
    predictions = [read_tensors(folder / PREDICTIONS_FILE) for folder, _ in runs]
    stored = [tensors.get(f"{judged}/logits") for tensors in predictions]
    if any(logits is None or len(logits) != len(labels) for logits in stored):
        raise DeltafitError(f"{runs[0][0] / PREDICTIONS_FILE} does not fit the data; run it again.")
    correct = [logits.numpy().argmax(1) == labels for logits in stored if logits is not None]
    return Candidate(row, np.stack(correct))


def loss_history(metrics: dict[str, Any]) -> list[dict[str, float]]:
    """Return a run's losses as the plots take them."""
    return [
        {
            "step": entry["step"],
            "train_loss": entry["train_loss"],
            **({"validation_loss": entry["loss"]} if "loss" in entry else {}),
        }
        for entry in metrics["history"]
    ]


def compared(candidates: Sequence[Candidate]) -> list[Row]:
    """Compare every row with the best one, paired on the same judged rows."""
    best = max(candidates, key=lambda candidate: candidate.row["after"])
    return [
        {
            **candidate.row,
            "difference": None
            if candidate is best
            else asdict(paired_over_seeds(candidate.correct, best.correct)),
        }
        for candidate in candidates
    ]
