"""A linear probe: logistic regression on frozen features, folded into a plain linear head."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from deltafit.errors import DeltafitError

FOLDS = 3
# Inverse strengths of the L2 penalty on standardised features, weakest model first. On Banking77
# with MiniLM the accuracy is flat between 0.03 and 0.3 and falls by two points at the lower end.
C_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# A feature that varies by less than this share of the typical feature says nothing but rounding.
CONSTANT_FEATURE = 1e-6

Features = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier: ``logits = features @ weight.T + bias`` on raw, unscaled features.

    Attributes:
        weight: ``[classes, width]``, float64.
        bias: ``[classes]``, float64.
        C: the inverse penalty that did best.
        validation_accuracy: of that C, on the validation part or over the folds.
    """

    weight: FloatArray
    bias: FloatArray
    C: float
    validation_accuracy: float

    def logits(self, features: Features) -> FloatArray:
        """Return logits ``[n, classes]`` for ``features`` ``[n, width]``."""
        return features.astype(np.float64) @ self.weight.T + self.bias


def logistic_probe(
    train_features: Features,
    train_labels: Labels,
    *,
    classes: int,
    validation: tuple[Features, Labels] | None = None,
    seed: int = 0,
    c_grid: Sequence[float] = C_GRID,
) -> Probe:
    """Fit multinomial logistic regression, with the penalty that does best on held-out rows.

    The features are standardised for the fit (an L2 penalty and L-BFGS both need one scale for
    all), and the scaling is folded back into weight and bias. Two classes become two rows of
    opposite sign; a class without training rows gets zero weights and a bias that never wins.

    Args:
        train_features: ``[n, width]``.
        train_labels: class indices below ``classes``, ``[n]``.
        classes: how many rows the head has, whether or not all occur in training.
        validation: features and labels that choose C; without them, three stratified folds of
            the training rows do, and the result is then fitted on all of them.
        seed: deals the rows into folds; the fit itself has no randomness.
        c_grid: inverse penalties to try, ascending; the first of equals wins.

    Raises:
        DeltafitError: features that are not finite, or too few rows to hold some out.
    """
    if not np.isfinite(train_features).all():
        raise DeltafitError(
            "The frozen features are not finite, so no linear probe can be fitted on them. "
            "Compute them in float32 (--precision float32)."
        )
    if validation is not None:
        held_out, held_out_labels = validation
        tried = [
            (_accuracy(weight, bias, held_out, held_out_labels), c, weight, bias)
            for c, weight, bias in _fits(train_features, train_labels, classes, c_grid)
        ]
        accuracy, c, weight, bias = max(tried, key=lambda one: one[0])
        return Probe(weight, bias, c, accuracy)

    if len(train_labels) < FOLDS:
        raise DeltafitError(
            f"A linear probe needs at least {FOLDS} training rows, got {len(train_labels)}. "
            "Add rows or give validation data."
        )
    fold_of_row = _stratified_folds(train_labels, seed)
    accuracies = np.zeros(len(c_grid))
    for fold in range(FOLDS):
        inside = fold_of_row != fold
        fits = _fits(train_features[inside], train_labels[inside], classes, c_grid)
        for index, (_, weight, bias) in enumerate(fits):
            accuracies[index] += _accuracy(
                weight, bias, train_features[~inside], train_labels[~inside]
            )
    best = int(accuracies.argmax())
    ((c, weight, bias),) = _fits(train_features, train_labels, classes, [c_grid[best]])
    return Probe(weight, bias, c, float(accuracies[best] / FOLDS))


def _fits(
    features: Features, labels: Labels, classes: int, c_grid: Sequence[float]
) -> Iterator[tuple[float, FloatArray, FloatArray]]:
    """Yield ``(C, weight, bias)`` for each C of the grid, on the scale of the raw features."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    varies = deviation > CONSTANT_FEATURE * deviation.mean()
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    scaled = (features - mean) * scale

    present = np.unique(labels)
    # Each C starts from the one before: neighbours have neighbouring solutions.
    model = LogisticRegression(max_iter=1000, warm_start=True)
    for c in c_grid:
        # A class without rows keeps this bias. The logits of the others are centred, so one of
        # them is at least 0 and the absent class is never predicted; its probability stays below
        # 1 / n, yet a head that starts from here can still learn it.
        weight = np.zeros((classes, features.shape[1]))
        bias = np.full(classes, -np.log(len(labels) + 1.0))
        if len(present) == 1:
            bias[present] = 0.0
        else:
            with warnings.catch_warnings():
                # Stopped at max_iter, a fit is a little more regularised than asked: no harm.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=c).fit(scaled, labels)
            weight[present], bias[present] = _centred_rows(model)
        weight *= scale
        yield c, weight, bias - weight @ mean


def _centred_rows(model: LogisticRegression) -> tuple[FloatArray, FloatArray]:
    """Return one row a class present, ``[present, width]`` and ``[present]``, summing to zero."""
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row: the log-odds of the second class
        return np.vstack([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight - weight.mean(axis=0), bias - bias.mean()


def _accuracy(weight: FloatArray, bias: FloatArray, features: Features, labels: Labels) -> float:
    return float(((features @ weight.T + bias).argmax(axis=1) == labels).mean())


def _stratified_folds(labels: Labels, seed: int) -> NDArray[np.integer[Any]]:
    """Deal the rows into folds ``[n]``, class by class, so that rare classes spread out.

    scikit-learn's StratifiedKFold warns or refuses where a class has fewer rows than folds.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold_of_row = np.empty(len(labels), dtype=np.int64)
    fold_of_row[order] = np.arange(len(labels)) % FOLDS
    return fold_of_row
