"""Rows of a comparison: baselines and runs, each with what it got right, and their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltafit.data import LabelledTexts, Splits
from deltafit.errors import DeltafitError
from deltafit.experiments.answers import Answers, answers_of
from deltafit.experiments.baselines import Scored
from deltafit.experiments.class_statistics import macro_f1_interval
from deltafit.experiments.differences import with_differences
from deltafit.experiments.rank_plot import adapted_matrices
from deltafit.experiments.statistics import mean_accuracy_interval
from deltafit.files import read_tensors
from deltafit.methods import Method
from deltafit.tasks.metrics import classification_metrics
from deltafit.training.results import PREDICTIONS_FILE

Row = dict[str, Any]

# What a baseline's row and a failed method's lack.
_COSTS = (
    *("before", "training", "validation", "trainable", "total", "seconds", "examples_per_second"),
    *("peak_memory_bytes", "saved_bytes"),
    *("macro_f1_interval", "seconds_range", "peak_memory_range", "settings", "targets"),
    *("against_full", "against_advised", "learning_rate", "head_learning_rate"),
    *("searched", "trials", "varied"),
    *("folder", "after_new_rows", "conditions"),
)
MARGINS = ("tfidf_svm",)  # baselines whose scores are no logarithms of probabilities


@dataclass
class Candidate:
    """A row before it is compared.

    Attributes:
        row: without what comparing adds.
        correct: which of the judged rows it got right, ``[seeds, rows]``.
        answers: what it said of them, where that is known.
    """

    row: Row
    correct: np.ndarray
    answers: Answers | None = None


@dataclass(frozen=True)
class Failure:
    """A method that cannot be judged, because all runs of it failed.

    Attributes:
        name: of the method, as its row shows it.
        result_name: the method's name in result files.
        sentence: what happened to the first, without its subject, and what to do: "diverged at
            step 40: loss nan. Lower --lr."
    """

    name: str
    result_name: str
    sentence: str


def baselines(scored: Sequence[Scored], splits: Splits, judged: str) -> list[Candidate]:
    """Return the rows of the cheap baselines, judged on one part."""
    part, known = splits.parts()[judged], splits.duplicates(judged)
    return [
        _baseline(each.name, each.result_name, each.scores, part, known, each.seconds, *each.notes)
        for each in scored
    ]


def _baseline(
    name: str,
    result_name: str,
    scores: np.ndarray,
    part: LabelledTexts,
    known: Sequence[int],
    seconds: float,
    *notes: str,
) -> Candidate:
    labels = np.asarray(part.labels)
    metrics = classification_metrics(labels, scores, part.label_names)
    answers = answers_of([scores], probabilistic=result_name not in MARGINS)
    correct = answers.predicted == labels
    row = _row(name, "baseline", result_name, [metrics], correct, notes)
    row["after_new_rows"] = _on_new_rows(correct, known)
    row["macro_f1_interval"] = macro_f1_interval(labels, answers.predicted, scores.shape[1])
    return Candidate({**row, "seconds": seconds}, correct, answers)


def _on_new_rows(correct: np.ndarray, known: Sequence[int]) -> float | None:
    """Return the accuracy without the rows ``known`` from training; they reward memory alone.

    None where there are none, or no others.

    Args:
        correct: which of the judged rows each seed got right, ``[seeds, rows]``.
        known: indices of the judged rows whose text stands in the training part too.
    """
    new = np.setdiff1d(np.arange(correct.shape[1]), known)
    return float(correct[:, new].mean()) if known and new.size else None


def _row(
    name: str,
    kind: str,
    result_name: str,
    metrics: Sequence[dict[str, Any]],
    correct: np.ndarray,
    notes: Sequence[str],
) -> Row:
    return {
        **dict.fromkeys((*_COSTS, "failure")),
        "name": name,
        "kind": kind,
        "result_name": result_name,
        "metric_name": "accuracy",
        "count": correct.shape[1],
        "after": float(np.mean([figures["accuracy"] for figures in metrics])),
        "interval": mean_accuracy_interval(correct),
        "macro_f1": float(np.mean([figures["macro_f1"] for figures in metrics])),
        "seeds": len(metrics),
        "failed_seeds": 0,
        "notes": list(notes),
    }


def failed_row(name: str, result_name: str, failure: str) -> Row:
    """Return the row of a method that cannot be judged, and says why; see `Failure`."""
    unknown = ("count", "after", "interval", "macro_f1", "seeds", "failed_seeds")
    return {
        **dict.fromkeys((*_COSTS, *unknown, "difference", "against_baseline")),
        "name": name,
        "kind": "run",
        "result_name": result_name,
        "metric_name": "accuracy",
        "failure": failure,
        "notes": [],
    }


def candidate_of(
    name: str,
    method: Method,
    runs: Sequence[tuple[Path, dict[str, Any]]],
    judged: str,
    splits: Splits,
    failed: Sequence[str] = (),
    remark: str | None = None,
) -> Candidate:
    """Return the row of a method from its finished runs, one a seed.

    Args:
        name: of the row.
        method: of the runs.
        runs: folder and metrics of each.
        judged: the part.
        splits: the texts.
        failed: a sentence for each run that failed, such as "with seed 3 diverged at step 40".
        remark: the first of the row's notes.

    Raises:
        DeltafitError: a run's stored predictions are not of these splits.
    """
    after = [metrics["after"][judged] for _, metrics in runs]
    costs = [metrics["costs"] for _, metrics in runs]
    notes = [remark] if remark else []
    notes += list(dict.fromkeys(note for _, metrics in runs for note in metrics["notes"]))
    notes += [f"{sentence} It is not in the figures." for sentence in failed]
    if judged == "validation":
        notes.append("judged on the validation rows, which also chose its checkpoint")
    labels = np.asarray(splits.parts()[judged].labels)
    answers = _answers(runs, judged, labels)
    correct = answers.predicted == labels
    row = _row(name, "run", method.result_name, after, correct, notes)
    # A run that took no measurable time has no speed.
    speeds = [cost["examples_per_second"] for cost in costs if cost["examples_per_second"]]
    row |= {
        "settings": method.to_dict(),
        "targets": adapted_matrices(runs[0][0] / "adapter"),
        "failed_seeds": len(failed),
        "after_new_rows": _on_new_rows(correct, splits.duplicates(judged)),
        "before": _accuracy(runs, "before", judged),
        "training": _accuracy(runs, "after", "train"),
        "validation": _accuracy(runs, "after", "validation"),
        "trainable": costs[0]["trainable_parameters"],
        "total": costs[0]["total_parameters"],
        "seconds": float(np.mean([cost["training_seconds"] for cost in costs])),
        "examples_per_second": float(np.mean(speeds)) if speeds else None,
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
        "saved_bytes": costs[0]["saved_bytes"],
        "macro_f1_interval": macro_f1_interval(
            labels, answers.predicted, len(splits.train.label_names)
        ),
        "seconds_range": _range([cost["training_seconds"] for cost in costs]),
        "peak_memory_range": _range([cost["peak_memory_bytes"] for cost in costs]),
        "conditions": "; ".join(dict.fromkeys(_conditions(metrics) for _, metrics in runs)),
    }
    return Candidate(row, correct, answers)


def _conditions(metrics: Mapping[str, Any]) -> str:
    """Return under what a run was timed: "AMD EPYC, 2 threads, 16 runs jointly"."""
    found = metrics["environment"]
    device = found["device"].partition(":")[0]
    on = (found["processor"] if device == "cpu" else found.get("gpu")) or device
    parts = [str(on)]
    if found["processes"] > 1:
        parts.append(f"{found['processes']} processes")
    parts.append(f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}")
    together = metrics.get("joined")
    return ", ".join(parts + ([f"{together} runs jointly"] if together else []))


def _accuracy(runs: Sequence[tuple[Path, dict[str, Any]]], when: str, part: str) -> float | None:
    """Return the mean accuracy of runs on a part; None where one was not judged on it."""
    parts = [metrics[when] for _, metrics in runs]
    if any(part not in judged for judged in parts):
        return None
    return float(np.mean([judged[part]["accuracy"] for judged in parts]))


def _range(values: Sequence[float]) -> list[float] | None:
    """Return the smallest and the largest over seeds; None of one seed."""
    return [min(values), max(values)] if len(values) > 1 else None


def _answers(
    runs: Sequence[tuple[Path, dict[str, Any]]], judged: str, labels: np.ndarray
) -> Answers:
    predictions = [read_tensors(folder / PREDICTIONS_FILE) for folder, _ in runs]
    stored = [tensors.get(f"{judged}/logits") for tensors in predictions]
    if any(logits is None or len(logits) != len(labels) for logits in stored):
        raise DeltafitError(f"{runs[0][0] / PREDICTIONS_FILE} does not fit the data; run it again.")
    return answers_of([logits.numpy() for logits in stored if logits is not None])


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


def compared(methods: Sequence[Candidate | Failure]) -> list[Row]:
    """Compare the rows with each other, as `with_differences` does.

    A failed method gets a row that says why and is compared with nothing.

    Args:
        methods: baselines and methods, in the order in which their rows are wanted.
    """
    candidates = [method for method in methods if isinstance(method, Candidate)]
    correct = [candidate.correct for candidate in candidates]
    judged = iter(with_differences([candidate.row for candidate in candidates], correct))
    return [
        failed_row(method.name, method.result_name, method.sentence)
        if isinstance(method, Failure)
        else next(judged)
        for method in methods
    ]
