"""Confusions: which classes are taken for which, and is a change between two methods noise?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltafit.experiments.answers import IntArray
from deltafit.experiments.resampling import FloatArray
from deltafit.experiments.statistics import PairedComparison, corrected
from deltafit.experiments.together import paired_over_seeds

# Each that is tested takes power from the others, and rare ones could not be told apart anyway.
CONFUSIONS_TESTED = 200


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
