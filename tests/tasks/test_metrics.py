"""Metrics against scikit-learn, hand-worked formulas and brute force."""

import json
import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from deltafit.errors import DeltafitError, UsageError
from deltafit.tasks.metrics import (
    METRICS,
    accuracy_interval,
    classification_metrics,
    expected_calibration_error,
    find_metric,
    predictions_collapsed,
)

NAMES = ("red", "green", "blue", "grey")


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 4, size=400)
    logits = rng.normal(size=(400, 4)) + 1.5 * np.eye(4)[labels]
    return labels, logits.astype(np.float32)


def test_figures_equal_scikit_learns(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = sample
    measured = classification_metrics(labels, logits, NAMES)
    predicted = logits.argmax(axis=1)
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert measured["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert measured["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert measured["weighted_f1"] == pytest.approx(
        sk.f1_score(labels, predicted, average="weighted")
    )
    assert measured["log_loss"] == pytest.approx(sk.log_loss(labels, probabilities))
    assert measured["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    assert measured["count"] == 400
    report = sk.classification_report(labels, predicted, target_names=list(NAMES), output_dict=True)
    for name in NAMES:
        ours = measured["per_class"][name]
        assert ours["precision"] == pytest.approx(report[name]["precision"])
        assert ours["recall"] == pytest.approx(report[name]["recall"])
        assert ours["f1"] == pytest.approx(report[name]["f1-score"])
        assert ours["support"] == report[name]["support"]


def test_confusion_rows_are_the_truth() -> None:
    logits = np.array([[0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])
    measured = classification_metrics(np.array([0, 0, 1]), logits, ("no", "yes"))
    assert measured["confusion_matrix"] == [[0, 2], [0, 1]]


def test_result_is_json_and_reads_back(sample: tuple[np.ndarray, np.ndarray]) -> None:
    measured = classification_metrics(*sample, NAMES)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_absent_classes_neither_warn_nor_crash() -> None:
    logits = np.array([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = classification_metrics(np.array([0, 0]), logits, ("a", "b", "c"))
    assert measured["per_class"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert np.shape(measured["confusion_matrix"]) == (3, 3)
    assert measured["macro_f1"] == measured["weighted_f1"] == 1


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [
        ([1, 1, 1], [1, 1, 1]),  # one class of four, all right
        ([0, 0, 2, 2], [0, 2, 2, 2]),  # two neither true nor predicted
        ([0, 0, 0, 0], [0, 3, 3, 0]),  # one predicted that never occurs
        ([0, 1, 1, 3], [2, 2, 2, 2]),  # nothing right
    ],
)
def test_macro_f1_is_scikit_learns_where_classes_are_absent(
    labels: list[int], predicted: list[int]
) -> None:
    measured = classification_metrics(np.array(labels), 5 * np.eye(4)[predicted], NAMES)
    expected = sk.f1_score(labels, predicted, average="macro", zero_division=0)
    assert measured["macro_f1"] == pytest.approx(expected)
    assert list(measured["per_class"]) == list(NAMES)


def test_log_loss_of_a_confident_error_is_not_clipped() -> None:
    measured = classification_metrics(
        np.array([1]), np.array([[1000.0, 0.0]], dtype=np.float32), ("a", "b")
    )
    assert measured["log_loss"] == pytest.approx(1000)


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (291, 300), (1, 1)])
def test_wilson_interval_by_hand(correct: int, count: int) -> None:
    z, p = 1.959963984540054, correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    assert accuracy_interval(correct, count) == pytest.approx([centre - half, centre + half])


def brute_force_calibration_error(labels: np.ndarray, logits: np.ndarray) -> float:
    total = 0.0
    rows = []
    for label, row in zip(labels, logits, strict=True):
        exponentials = [math.exp(value) for value in row]
        probabilities = [value / sum(exponentials) for value in exponentials]
        best = max(range(len(row)), key=lambda index: probabilities[index])
        rows.append((probabilities[best], best == label))
    for index in range(15):
        inside = [row for row in rows if index / 15 < row[0] <= (index + 1) / 15]
        if inside:
            accuracy = sum(row[1] for row in inside) / len(inside)
            confidence = sum(row[0] for row in inside) / len(inside)
            total += len(inside) / len(rows) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("classes", [2, 5, 40])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_calibration_error_by_brute_force(classes: int, spread: float) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, size=300)
    logits = rng.normal(scale=spread, size=(300, classes))
    assert expected_calibration_error(labels, logits) == pytest.approx(
        brute_force_calibration_error(labels, logits), abs=1e-12
    )


def test_calibration_error_of_a_sure_and_right_classifier_is_zero() -> None:
    labels = np.array([0, 1, 1])
    assert expected_calibration_error(labels, 1e4 * np.eye(2)[labels]) == 0
    assert expected_calibration_error(1 - labels, 1e4 * np.eye(2)[labels]) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_with_their_row(bad: float) -> None:
    logits = np.zeros((4, 2))
    logits[2, 1] = bad
    with pytest.raises(DeltafitError, match=r"1 of 4 rows .* row 3"):
        classification_metrics(np.zeros(4, dtype=int), logits, ("a", "b"))


@pytest.mark.parametrize(
    ("labels", "shape", "expected"),
    [
        ([], (0, 2), "no rows"),
        ([0, 1], (2, 3), r"Expected logits of shape \(2, 2\)"),
        ([0, 2], (2, 2), "Labels run from 0 to 2"),
        ([-1, 0], (2, 2), "Labels run from -1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    labels: list[int], shape: tuple[int, int], expected: str
) -> None:
    with pytest.raises(DeltafitError, match=expected):
        classification_metrics(np.array(labels, dtype=int), np.zeros(shape), ("a", "b"))


def test_collapse_is_seen() -> None:
    assert predictions_collapsed(np.array([[1.0, 0.0], [5.0, 4.0]]))
    assert not predictions_collapsed(np.array([[1.0, 0.0], [4.0, 5.0]]))


def test_every_named_metric_is_measured_or_the_loops_own(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    measured = classification_metrics(*sample, NAMES)
    assert {metric.key for metric in METRICS.values()} - set(measured) == {"loss"}
    better = {name for name, metric in METRICS.items() if metric.higher_is_better}
    assert better == {"accuracy", "macro_f1", "weighted_f1"}


def test_unknown_metric_lists_the_known() -> None:
    assert find_metric("accuracy").key == "accuracy"
    with pytest.raises(UsageError, match=r"'auc'.*accuracy, macro_f1, .*loss"):
        find_metric("auc")
