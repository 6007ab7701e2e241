"""Drawing test rows and training seeds again: what the bootstraps of the room share."""

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 500

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def resampled_accuracies(
    correct: BoolArray,
    pseudo: BoolArray,
    weight: float,
    resamples: int,
    generator: np.random.Generator,
) -> FloatArray:
    """Draw rows with replacement; return each run's accuracy on them, ``[resamples, runs]``.

    Args:
        correct: which rows each run got right, ``[runs, n]``.
        pseudo: rows that are added, ``[runs, pseudo-rows]``.
        weight: how many rows each of those counts as.
        resamples: how many times rows are drawn.
        generator: of the draws.
    """
    columns = np.concatenate([correct, pseudo], axis=1)
    patterns, pattern_of_row = np.unique(columns, axis=1, return_inverse=True)
    weight_of_row = np.repeat([1.0, weight], [correct.shape[1], pseudo.shape[1]])
    weights = np.bincount(pattern_of_row, weights=weight_of_row)
    total = weights.sum()
    # Rows with the same pattern of right and wrong runs are interchangeable, so drawing rows with
    # replacement is one multinomial draw over the few patterns there are.
    accuracies = []
    for start in range(0, resamples, _DRAWS_AT_ONCE):  # many patterns would take gigabytes
        size = min(_DRAWS_AT_ONCE, resamples - start)
        drawn = generator.multinomial(round(total), weights / total, size=size)
        accuracies.append(drawn @ patterns.T.astype(np.float64) / total)
    return np.concatenate(accuracies)


def mean_of_drawn_seeds(values: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Average ``seeds - 1`` drawn seeds (one, if there is only one) of ``[draws, seeds, …]``."""
    draws, seeds = values.shape[:2]
    chosen = generator.integers(0, seeds, size=(draws, max(1, seeds - 1)))
    means: FloatArray = values[np.arange(draws)[:, None], chosen].mean(axis=1)
    return means


def middle(values: FloatArray) -> tuple[float, float]:
    """Return the ends of the middle 95 % of ``values`` ``[resamples]``."""
    low, high = np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)
