"""Methods compared on the same judged rows, all pairs of them together.

The best of twenty equal methods looks better than most of the others, for it was chosen for that. A
comparison with it is one of all pairs that might have been made, so p-values are corrected for all
of these. They come from one bootstrap of all methods, which knows how much the differences have in
common, and so takes less than a bound for so many would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import norm

from deltafit.errors import DeltafitError
from deltafit.experiments.resampling import (
    RESAMPLES,
    BoolArray,
    FloatArray,
    SeedNoise,
    as_normal,
    at_least_the_average,
    degrees_of_freedom,
    interval,
    resampled_means,
)
from deltafit.experiments.statistics import PairedComparison, comparison_of, mirrored, mismatch

# Agresti & Min (2005) add two rows to the 2 × 2 table of (a right, b right), half a one a cell. A
# row that each method gets right as a coin falls is just that for every pair of them.
PSEUDO_ROWS = 2
_MOST_FIGURES = 5_000_000  # draws × pairs; some five arrays of them are in memory, 200 MB


class Together:
    """Methods whose pairs are compared together.

    Test rows and training seeds are both samples: other rows or other seeds would have given other
    differences. Rows are drawn again (a bootstrap, the same rows for all methods), and the mean
    over ``k`` seeds gets normal noise with the variance that the seeds show. That variance is known
    from ``k - 1`` degrees of freedom only, so intervals are widened, and p-values raised, as
    Student's distribution asks with the degrees of `degrees_of_freedom`. Of one seed the noise of
    training is not known, and *not* counted. For corrected p-values no method's noise is below what
    the seeds of all show on average (`at_least_the_average`), since of many methods some have seeds
    that agree by chance; an interval is of its two methods alone. Agresti & Min's two rows are
    added, so that a handful of disagreements is no certainty, and one run each gets the interval of
    `paired_comparison`.

    A seed's noise is taken as one method's own. A method may be a mean over settings, such as rank
    4 over four α; these are taken as they are, and a seed is one of all settings.

    Simulated, with equal methods of which the apparently best one is compared with the others, any
    of these was falsely called worse in at most 7 of 100 trials: of 2 to 20 methods, with one seed,
    or with two to five where seeds are a little or half of the noise (test_together.py). A method
    that varies much more than the others from seed to seed is one of which two seeds say too
    little.

    Args:
        correct: of each method which rows its runs got right, ``[seeds, n]`` or
            ``[settings, seeds, n]``; the numbers of seeds may differ (a baseline without randomness
            has one).
        seed: of the draws; the same input and seed give the same answer.
        resamples: how often rows are drawn at most; of very many pairs it is less.

    Raises:
        DeltafitError: there are no rows or seeds, or methods were measured on different rows or
            under different numbers of settings.
    """

    def __init__(
        self, correct: Sequence[BoolArray], seed: int = 0, resamples: int = RESAMPLES
    ) -> None:
        methods = [each[None] if each.ndim == 2 else each for each in correct]
        shapes = {(each.shape[0], each.shape[-1]) for each in methods}
        if any(each.ndim != 3 or not each.size for each in methods) or len(shapes) > 1:
            raise DeltafitError(mismatch([each.shape for each in correct]))
        pairs = [*combinations(range(len(methods)), 2)]
        if not pairs:
            self._found: dict[tuple[int, int], PairedComparison] = {}
            return
        generator = np.random.default_rng(seed)
        resamples = max(1_000, min(resamples, _MOST_FIGURES // len(pairs)))
        by_row = np.stack([each.mean(axis=(0, 1)) for each in methods])
        drawn = resampled_means(by_row, PSEUDO_ROWS, resamples, generator)
        own = [SeedNoise.of(each.mean(axis=(0, 2))) for each in methods]
        noises = at_least_the_average(own)
        drawn += np.stack([noise.drawn(resamples, generator) for noise in noises], axis=1)
        first, second = np.array(pairs).T
        means, rows = by_row.mean(axis=1), by_row.shape[1]
        differences = means[first] - means[second]
        covariance = np.cov(by_row, bias=True)
        of_rows = (
            rows * (np.diag(covariance)[first] + np.diag(covariance)[second])
            - 2 * rows * covariance[first, second]
            + PSEUDO_ROWS / 2
        ) / (rows + PSEUDO_ROWS) ** 2

        def known_with(noises: Sequence[SeedNoise]) -> Known:
            """Return what is known of all pairs' differences, given what seeds add."""
            variances = of_rows + np.array(
                [noises[a].variance + noises[b].variance for a, b in pairs]
            )
            degrees = [
                degrees_of_freedom(variance, [noises[a], noises[b]])
                for variance, (a, b) in zip(variances, pairs, strict=True)
            ]
            centre = differences * rows / (rows + PSEUDO_ROWS)
            return Known(centre, variances**0.5, np.array(degrees))

        apart = drawn[:, first] - drawn[:, second]
        found = compared_together(differences, apart, known_with(own), known_with(noises))
        self._found = dict(zip(pairs, found, strict=True))

    def compare(self, a: int, b: int) -> PairedComparison:
        """Return how method ``a`` stands to ``b``, corrected for all pairs."""
        return self._found[a, b] if a < b else mirrored(self._found[b, a])


def paired_over_seeds(correct_a: BoolArray, correct_b: BoolArray) -> PairedComparison:
    """Compare two methods, several training seeds each, on the same ``n`` test rows.

    Args:
        correct_a: which rows each run of a got right, ``[seeds of a, n]``.
        correct_b: the same for b, ``[seeds of b, n]``.

    Raises:
        DeltafitError: as `Together`.
    """
    return Together([correct_a, correct_b]).compare(0, 1)


@dataclass(frozen=True)
class Known:
    """What is known of differences.

    Attributes:
        centre: of their intervals, ``[n]``.
        error: their standard errors, ``[n]``.
        degrees: of freedom of these, ``[n]``.
    """

    centre: FloatArray
    error: FloatArray
    degrees: FloatArray

    @property
    def far(self) -> FloatArray:
        """How many errors they are from 0, as a normal distribution would have it."""
        return as_normal(np.abs(self.centre) / self.error, self.degrees)


def compared_together(
    differences: FloatArray, drawn: FloatArray, alone: Known, among: Known
) -> list[PairedComparison]:
    """Return comparisons that are read together, from one bootstrap of all of them.

    The corrected p-value of a difference is how often the largest of those not yet rejected would
    be as large, each measured in its own standard error: Romano & Wolf (2005), "Exact and
    approximate stepdown methods for multiple hypothesis testing", JASA 100. It is at most the
    promised share for any true hypothesis to be rejected, however the differences depend on each
    other, and however one of them was chosen to be looked at.

    Args:
        differences: as measured, ``[n]``.
        drawn: the same, drawn again, ``[draws, n]``.
        alone: what is known of each looked at alone: its interval, and its p-value.
        among: the same for the corrected p-values, where others may make it more careful.
    """
    error = np.maximum(drawn.std(axis=0), np.finfo(np.float64).tiny)
    by_chance = np.abs((drawn - drawn.mean(axis=0)) / error)
    far = among.far
    order = np.argsort(-far, kind="stable")
    # Of each hypothesis the largest of those that come after it, and of itself.
    largest = np.maximum.accumulate(by_chance[:, order[::-1]], axis=1)[:, ::-1]
    reached = ((largest >= far[order]).sum(axis=0) + 1) / (len(drawn) + 1)
    p_value = 2 * norm.sf(alone.far)
    corrected = np.empty_like(p_value)
    corrected[order] = np.maximum.accumulate(reached)
    corrected = np.maximum(corrected, p_value)
    low, high = interval(alone.centre, alone.error, alone.degrees)
    return [
        comparison_of(*map(float, figures))
        for figures in zip(differences, low, high, p_value, corrected, strict=True)
    ]
