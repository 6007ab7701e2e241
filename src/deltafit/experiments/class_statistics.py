"""F1 by class and confusions: which differ between two methods, and which differences are noise?

Rows and seeds are resampled together as in `deltafit.experiments.statistics.paired_over_seeds`, and
what is found is corrected for the number of classes or confusions that were looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from deltafit.experiments.answers import IntArray
from deltafit.experiments.resampling import mean_of_drawn_seeds, middle
from deltafit.experiments.statistics import (
    PairedComparison,
    compared_by_draws,
    corrected,
    paired_over_seeds,
)

FloatArray = NDArray[np.float64]

RESAMPLES = 2_000
# A bootstrap of R draws knows no p-value below 2/R, which Holm's correction multiplies by the
# number of classes: with 60 draws a class the smallest corrected one is 0.03.
DRAWS_A_CLASS = 60
# A bootstrap of 10,000 draws knows no p-value below 2/10,001: among 200 that is still 0.04.
CONFUSIONS_TESTED = 200
RARE = 0.5  # of the training rows that a class would have if all had as many


@dataclass(frozen=True)
class ClassDifference:
    """A class's F1 under a method and under the reference.

    Attributes:
        name: of the class.
        support: judged rows of it.
        train_count: training rows of it.
        rare: whether that is under half of a class's even share.
        f1: the method's, the mean over its seeds.
        reference_f1: the reference's.
        comparison: of the two, corrected for the number of classes.
    """

    name: str
    support: int
    train_count: int
    rare: bool
    f1: float
    reference_f1: float
    comparison: PairedComparison


@dataclass(frozen=True)
class ConfusionChange:
    """How often a class is taken for another by a method and by the reference.

    Attributes:
        truth: the true class.
        predicted: what it is taken for.
        rows: judged rows where the method does so, the mean over its seeds.
        reference_rows: where the reference does.
        comparison: of their shares of the judged rows, corrected for the number of confusions
            that were tested.
    """

    truth: str
    predicted: str
    rows: float
    reference_rows: float
    comparison: PairedComparison


@dataclass(frozen=True)
class Confusions:
    """What a method and the reference confuse.

    Attributes:
        occurring: how many confusions either of them makes at all.
        tested: the 200 most frequent of them at most; the largest changes first.
    """

    occurring: int
    tested: tuple[ConfusionChange, ...]


def class_f1(labels: IntArray, predicted: IntArray, classes: int) -> FloatArray:
    """Return F1 by seed and class, ``[seeds, classes]``; 0 where a class is neither met nor said.

    Args:
        labels: true class indices, ``[n]``.
        predicted: ``[seeds, n]``.
        classes: how many there are.
    """
    weights = np.ones((1, len(labels)))
    f1, _ = _weighted_f1(weights, labels, predicted, classes)
    result: FloatArray = f1[0]
    return result


def macro_f1_interval(labels: IntArray, predicted: IntArray, classes: int) -> list[float] | None:
    """Return the 95 % interval ``[low, high]`` of macro-F1, the mean over seeds.

    The middle of a bootstrap of rows, and of seeds where there are several. None where every row is
    right with every seed: rows drawn again from such would show certainty.

    Args:
        labels: true class indices, ``[n]``.
        predicted: ``[seeds, n]``.
        classes: how many there are.
    """
    if (predicted == labels).all():
        return None
    generator = np.random.default_rng(0)
    means = []
    for f1, occurs in _resampled_f1(labels, predicted, classes, RESAMPLES, generator):
        macro = f1.sum(axis=2) / np.maximum(occurs.sum(axis=2), 1)  # [draws, seeds]
        means.append(mean_of_drawn_seeds(macro, generator))
    return list(middle(np.concatenate(means)))


def class_differences(
    labels: IntArray,
    label_names: Sequence[str],
    train_counts: Sequence[int],
    predicted: IntArray,
    reference: IntArray,
) -> list[ClassDifference]:
    """Compare the F1 of every class that is among the judged rows, in the order of the classes.

    Args:
        labels: true class indices, ``[n]``.
        label_names: of the classes.
        train_counts: training rows of each.
        predicted: the method's answers, ``[seeds, n]``.
        reference: the reference's answers, ``[seeds, n]``.
    """
    classes, generator = len(label_names), np.random.default_rng(0)
    draws = max(RESAMPLES, DRAWS_A_CLASS * classes)
    both, first = np.concatenate([predicted, reference]), len(predicted)
    resampled = np.concatenate(
        [
            mean_of_drawn_seeds(f1[:, :first], generator)
            - mean_of_drawn_seeds(f1[:, first:], generator)
            for f1, _ in _resampled_f1(labels, both, classes, draws, generator)
        ]
    )  # [draws, classes]
    f1 = class_f1(labels, both, classes)
    ours, theirs = f1[:first].mean(axis=0), f1[first:].mean(axis=0)
    support = np.bincount(labels, minlength=classes)
    met = [index for index in range(classes) if support[index]]
    compared = corrected([compared_by_draws(ours[i] - theirs[i], resampled[:, i]) for i in met])
    even = sum(train_counts) / classes
    return [
        ClassDifference(
            name=label_names[i],
            support=int(support[i]),
            train_count=train_counts[i],
            rare=train_counts[i] < RARE * even,
            f1=float(ours[i]),
            reference_f1=float(theirs[i]),
            comparison=comparison,
        )
        for i, comparison in zip(met, compared, strict=True)
    ]


def confusion_changes(
    labels: IntArray, label_names: Sequence[str], predicted: IntArray, reference: IntArray
) -> Confusions:
    """Compare how often each class is taken for each other.

    Of more than 200 confusions the most frequent are tested, of the method's rows and the
    reference's together: to choose by the change, and then to correct for the chosen alone, would
    find changes where there are none.

    Args:
        labels: true class indices, ``[n]``.
        label_names: of the classes.
        predicted: the method's answers, ``[seeds, n]``.
        reference: the reference's answers, ``[seeds, n]``.
    """
    ours, theirs = (_confusions(labels, each, len(label_names)) for each in (predicted, reference))
    off_diagonal = ~np.eye(len(label_names), dtype=bool)
    a_b = np.argwhere(off_diagonal & (ours + theirs > 0))
    by_frequency = np.argsort(-(ours + theirs)[tuple(a_b.T)], kind="stable")
    pairs = a_b[by_frequency[:CONFUSIONS_TESTED]].tolist()
    comparisons = corrected(
        [
            paired_over_seeds((predicted == b) & (labels == a), (reference == b) & (labels == a))
            for a, b in pairs
        ]
    )
    tested = [
        ConfusionChange(
            *(label_names[a], label_names[b], float(ours[a, b]), float(theirs[a, b])), comparison
        )
        for (a, b), comparison in zip(pairs, comparisons, strict=True)
    ]
    tested.sort(key=lambda change: -abs(change.rows - change.reference_rows))
    return Confusions(len(a_b), tuple(tested))


def _confusions(labels: IntArray, predicted: IntArray, classes: int) -> FloatArray:
    """Return how many rows of each class are taken for each, ``[classes, classes]``."""
    cells = labels * classes + predicted  # [seeds, n]
    counts = np.bincount(cells.ravel(), minlength=classes**2) / len(predicted)
    return counts.reshape(classes, classes)


def _resampled_f1(
    labels: IntArray,
    predicted: IntArray,
    classes: int,
    draws: int,
    generator: np.random.Generator,
) -> list[tuple[FloatArray, NDArray[np.bool_]]]:
    """Draw rows with replacement; return F1 and which classes occur, ``[draws, runs, classes]``.

    Args:
        labels: true class indices, ``[n]``.
        predicted: ``[runs, n]``.
        classes: how many there are.
        draws: how many times rows are drawn.
        generator: of the draws.
    """
    # Rows on which all runs say the same of the same class are interchangeable.
    patterns, counts = np.unique(np.vstack([labels, predicted]), axis=1, return_counts=True)
    chunks = []
    for start in range(0, draws, 200):  # all at once would take gigabytes of many rows
        size = min(200, draws - start)
        weights = generator.multinomial(len(labels), counts / len(labels), size=size)
        drawn = weights.astype(np.float64)
        chunks.append(_weighted_f1(drawn, patterns[0], patterns[1:], classes))
    return chunks


def _weighted_f1(
    weights: FloatArray, labels: IntArray, predicted: IntArray, classes: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return F1, ``[draws, runs, classes]``, of rows that count ``weights`` ``[draws, n]`` each."""
    truth = _one_hot(labels, classes)
    met = (truth.T @ weights.T).T
    f1, occurs = [], []
    for answers in predicted:
        said = _one_hot(answers, classes)
        right = (truth.multiply(said).tocsr().T @ weights.T).T
        both = met + (said.T @ weights.T).T  # [draws, classes]
        f1.append(2 * right / np.maximum(both, 1e-9))
        occurs.append(both > 0)
    return np.stack(f1, axis=1), np.stack(occurs, axis=1)


def _one_hot(indices: IntArray, classes: int) -> csr_matrix:
    rows = np.arange(len(indices))
    return csr_matrix((np.ones(len(indices)), (rows, indices)), (len(indices), classes))
