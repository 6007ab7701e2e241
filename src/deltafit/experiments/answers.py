"""What methods said of the judged rows, and what a report needs to know of those rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from deltafit.adapters.movement import MatrixChange

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a method said of ``n`` judged rows with each seed.

    Attributes:
        predicted: class indices, ``[seeds, n]``.
        confidence: the largest probability of each row, ``[seeds, n]``; None of a method whose
            scores are no logarithms of probabilities.
    """

    predicted: IntArray
    confidence: NDArray[np.float64] | None


def answers_of(scores: Sequence[NDArray[np.floating]], *, probabilistic: bool = True) -> Answers:
    """Return what scores ``[n, classes]``, one array a seed, say.

    Args:
        scores: unnormalised log-probabilities, or margins.
        probabilistic: whether they are the former.
    """
    predicted = np.stack([each.argmax(axis=1) for each in scores]).astype(np.int64)
    if not probabilistic:
        return Answers(predicted, None)
    largest = [softmax(each.astype(np.float64), axis=1).max(axis=1) for each in scores]
    return Answers(predicted, np.stack(largest))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a report shows beside the rows of a comparison.

    Attributes:
        labels: true class indices of the judged rows, ``[n]``.
        label_names: of the classes.
        train_counts: training rows of each class.
        answers: of each method and baseline, by the name of its row.
        changes: how far each matrix moved in the run that stands for a row, by the row's name.
        runs: what that run is called.
    """

    labels: IntArray
    label_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    answers: Mapping[str, Answers]
    changes: Mapping[str, tuple[MatrixChange, ...]] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
