"""How good a classifier's logits are: every figure that the tables and the training loop use.

scikit-learn and scipy's statistics take two seconds to import, which predicting need not spend:
they are imported where they are used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from deltafit.errors import DeltafitError, UsageError

CALIBRATION_BINS = 15


class Metric(NamedTuple):
    """Where a named metric stands in a metrics dictionary, and which way is better."""

    key: str
    higher_is_better: bool


# "loss" is what the training loop minimises (label smoothing and class weights included), so the
# loop adds it; the others come from `classification_metrics`.
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", higher_is_better=True),
    "macro_f1": Metric("macro_f1", higher_is_better=True),
    "weighted_f1": Metric("weighted_f1", higher_is_better=True),
    "log_loss": Metric("log_loss", higher_is_better=False),
    "calibration_error": Metric("calibration_error", higher_is_better=False),
    "loss": Metric("loss", higher_is_better=False),
}


def find_metric(name: str) -> Metric:
    """Return the metric called ``name``.

    Raises:
        UsageError: there is none of that name; the sentence lists those there are.
    """
    if name not in METRICS:
        raise UsageError(f"There is no metric {name!r}. Choose one of: {', '.join(METRICS)}.")
    return METRICS[name]


def classification_metrics(
    labels: NDArray[np.integer[Any]],
    logits: NDArray[np.floating[Any]],
    label_names: Sequence[str],
) -> dict[str, Any]:
    """Measure a single-label classifier on one part of the data.

    Classes that do not occur in ``labels`` keep their place, and their scores are 0 (never a crash
    or a warning). Macro F1 is the mean over the classes that occur in the truth or are predicted,
    as scikit-learn's is: a class that could not be got right or wrong says nothing.

    Args:
        labels: true class indices, ``[n]``.
        logits: unnormalised log-probabilities, ``[n, classes]``; scores that are only ranked
            (a support vector machine's) give a meaningless log loss and calibration error.
        label_names: the class names, ``[classes]``.

    Returns:
        A dictionary that JSON can hold: ``accuracy``, its Wilson 95 % ``accuracy_interval``,
        ``macro_f1``, ``weighted_f1``, ``per_class``, ``confusion_matrix`` (rows are the truth),
        ``log_loss`` in nats, ``calibration_error`` and ``count``.

    Raises:
        DeltafitError: no rows, shapes that disagree, labels out of range, or a logit that is not
            finite.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    _check(labels, logits, label_names)
    classes = np.arange(len(label_names))
    predicted = logits.argmax(axis=1)
    correct = int((predicted == labels).sum())
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    occurring = np.union1d(labels, predicted)
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    return {
        "count": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_interval": accuracy_interval(correct, len(labels)),
        "macro_f1": float(f1[occurring].mean()),
        "weighted_f1": float(np.average(f1, weights=support)),
        "log_loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "calibration_error": expected_calibration_error(labels, logits),
        "per_class": {
            name: {
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "support": int(support[index]),
            }
            for index, name in enumerate(label_names)
        },
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def accuracy_interval(correct: int, count: int) -> list[float]:
    """Return the Wilson 95 % interval ``[low, high]`` of ``correct / count``.

    Source: Wilson (1927). It stays inside [0, 1] and holds its coverage near the ends, where
    mean ± 1.96 standard errors does not.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def expected_calibration_error(
    labels: NDArray[np.integer[Any]],
    logits: NDArray[np.floating[Any]],
    bins: int = CALIBRATION_BINS,
) -> float:
    """Return the mean gap between confidence and accuracy, weighted by the rows in each bin.

    ``ECE = Σ_b (n_b / n) · |accuracy(b) - confidence(b)|`` over equal-width bins ``(low, high]``
    of the largest probability. Source: Guo et al. (2017), "On Calibration of Modern Neural
    Networks", equation 3.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)  # [n, classes]
    correct = probabilities.argmax(axis=1) == labels
    return calibration_gap(probabilities.max(axis=1), correct, bins)


def calibration_gap(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Return the expected calibration error of rows by their confidence, ``[n]`` both."""
    # n_b · (accuracy - confidence) is a plain sum over the bin's rows, so no empty bin divides.
    of_row = calibration_bins(confidence, bins)
    gaps = np.bincount(of_row, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def calibration_bins(
    confidence: NDArray[np.float64], bins: int = CALIBRATION_BINS
) -> NDArray[np.int64]:
    """Return which of the equal-width bins ``(low, high]`` each confidence lies in, ``[n]``."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def predictions_collapsed(logits: NDArray[np.floating[Any]]) -> bool:
    """Say whether every row of ``logits`` ``[n, classes]`` predicts the same class."""
    return bool(np.unique(logits.argmax(axis=1)).size == 1)


def _check(
    labels: NDArray[np.integer[Any]],
    logits: NDArray[np.floating[Any]],
    label_names: Sequence[str],
) -> None:
    if len(labels) == 0:
        raise DeltafitError("There are no rows to measure on. Give a data file with rows.")
    expected = (len(labels), len(label_names))
    if logits.shape != expected:
        raise DeltafitError(
            f"Expected logits of shape {expected} for {expected[0]} rows and {expected[1]} "
            f"labels, got {tuple(logits.shape)}. Check that the model's head matches the labels."
        )
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise DeltafitError(
            f"Labels run from {labels.min()} to {labels.max()}, but the classifier knows "
            f"0 to {len(label_names) - 1}. Check that data and adapter have the same labels."
        )
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise DeltafitError(
            f"{int(broken.sum())} of {len(labels)} rows have logits that are not finite (the "
            f"first is row {int(broken.argmax()) + 1}). The model has diverged or its precision "
            "overflows: lower the learning rate or use --precision float32."
        )
