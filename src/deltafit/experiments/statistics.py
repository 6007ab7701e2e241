"""How well is an accuracy known, and is one method better than another or is it noise?

Two classifiers measured on the same rows share the rows' difficulty, so their difference is known
much better than either accuracy: overlapping intervals of the two do not mean a tie. Everything
here works on which rows each got right.

A comparison has one of three outcomes. *Within noise*: its own interval includes 0. *Beyond noise*:
its p-value, corrected for all that is compared beside it, is below 0.05. *Undecided*: neither; the
two differ looked at alone, which among so many happens by chance. A claim that one is better or
worse takes the second, a claim that they are alike (and the cheaper will do) the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from deltafit.errors import DeltafitError
from deltafit.experiments.resampling import (
    LEVEL,
    RESAMPLES,
    BoolArray,
    FloatArray,
    mean_of_drawn_seeds,
    middle,
    resampled_accuracies,
)
from deltafit.tasks.metrics import accuracy_interval

# Agresti & Min add two rows in all to the 2 × 2 table of (a right, b right), half a one a cell.
PSEUDO_ROWS = 0.5
# For one accuracy Agresti & Coull (1998, The American Statistician 52) add two rows that all runs
# got right and two that all got wrong.
PSEUDO_ROWS_OF_ONE = 2.0


@dataclass(frozen=True)
class PairedComparison:
    """The accuracy of a minus that of b on the same rows, as a fraction (0.01 is one point).

    Attributes:
        difference: as measured.
        low: lower end of the 95 % interval of the difference.
        high: upper end; the interval is not exactly symmetric about ``difference``.
        p_value: two-sided, for "a and b are equally good".
        adjusted_p_value: the same, corrected for the comparisons made beside it (`corrected`).
        within_noise: the interval includes 0, so the two cannot be told apart, looked at alone. No
            correction makes it true.
        beyond_noise: the interval excludes 0 and the corrected p-value is below 0.05, so one is
            better. Where neither holds, it is undecided.
    """

    difference: float
    low: float
    high: float
    p_value: float
    adjusted_p_value: float
    within_noise: bool
    beyond_noise: bool


def paired_comparison(correct_a: BoolArray, correct_b: BoolArray) -> PairedComparison:
    """Compare two classifiers, one run each, on the same ``n`` test rows.

    The p-value is McNemar's, exact: among the rows that only one of the two got right, each is as
    likely to be a's as b's. The interval is Agresti & Min's "Wald+2" (2005, "Simple improved
    confidence intervals for comparing matched proportions", Statistics in Medicine 24), which
    keeps its coverage where the plain Wald interval fails: with few disagreements it does not
    shrink to nothing. The two agree except at the very edge; ``within_noise`` follows the interval.

    Args:
        correct_a: which rows a got right, ``[n]``.
        correct_b: which rows b got right, ``[n]``.

    Raises:
        DeltafitError: there are no rows, or the two were not measured on the same ones.
    """
    if correct_a.ndim != 1 or correct_a.shape != correct_b.shape or not correct_a.size:
        raise DeltafitError(_mismatch(correct_a, correct_b))
    count = correct_a.size
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    disagreements = only_a + only_b
    p_value = float(binomtest(only_a, disagreements).pvalue) if disagreements else 1.0

    rows = count + 4 * PSEUDO_ROWS
    centre = (only_a - only_b) / rows
    variance = ((disagreements + 2 * PSEUDO_ROWS) / rows - centre**2) / rows
    half = float(norm.ppf(0.5 + LEVEL / 2)) * variance**0.5
    return _comparison((only_a - only_b) / count, centre - half, centre + half, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being several, in their order.

    Rejecting where the adjusted value is at most α rejects a true hypothesis at all with a
    probability of at most α, however the tests depend on each other. Source: Holm (1979), "A
    simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    Args:
        p_values: one a hypothesis; there may be none.

    Raises:
        DeltafitError: one of them is no probability.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DeltafitError(f"p-values lie between 0 and 1; got {list(p_values)}.")
    order = np.argsort(values, kind="stable")
    # The smallest of m counts m times, the next m - 1 times; none falls below a smaller one's.
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return [float(value) for value in adjusted]


def corrected(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    """Correct comparisons that are read together for their number, by `holm`.

    Of twenty methods equally good, one differs from the best by chance, so what is called beyond
    noise has to stand correction. What is called within noise has not: correction makes p-values
    larger the more is compared, and a method that is worse would become a tie, and be shipped as
    the cheaper, for the company it is in. Intervals and ``within_noise`` stay those of each
    comparison by itself.
    """
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [with_p_value(*pair) for pair in zip(comparisons, adjusted, strict=True)]


def with_p_value(comparison: PairedComparison, adjusted: float) -> PairedComparison:
    """Return a comparison with its p-value as corrected, and what follows from that."""
    beyond = _is_beyond(adjusted, within=comparison.within_noise)
    return replace(comparison, adjusted_p_value=adjusted, beyond_noise=beyond)


def smallest_visible_difference(count: int) -> float | None:
    """Return the smallest difference of two accuracies that is not within noise on ``count`` rows.

    That is where every disagreement falls to the same one of the two classifiers; with
    disagreements both ways, or noise of training, it takes more. As a fraction; None where even
    all rows are too few.
    """
    rows = np.arange(count)
    for disagreements in range(1, count + 1):
        if not paired_comparison(rows < disagreements, rows < 0).within_noise:
            return disagreements / count
    return None


def mean_accuracy_interval(
    correct: BoolArray, seed: int = 0, resamples: int = RESAMPLES
) -> list[float]:
    """Return the 95 % interval ``[low, high]`` of a method's accuracy, the mean over its seeds.

    Of one seed it is Wilson's, which holds the sampling of the rows alone. Of several, rows and
    seeds are both resampled, with the corrections of `paired_over_seeds`; the pseudo-rows are
    Agresti & Coull's, so that no errors are no certainty.

    Simulated, it held the true accuracy in 94 to 98 of 100 trials with three seeds and 300 rows
    where rows are the main noise, in 92 where rows and seeds are (there Wilson's of the mean did
    in 83), and in 81 where seeds are nearly all of it (Wilson's in 41). With two seeds that last
    figure is 68: what two values say of their spread is little.

    Args:
        correct: which rows each run got right, ``[seeds, n]``.
        seed: of the resampling; the same input and seed give the same answer.
        resamples: how many accuracies are drawn.

    Raises:
        DeltafitError: there are no rows or no seeds.
    """
    if correct.ndim != 2 or not correct.size:
        raise DeltafitError(
            "The interval of an accuracy needs answers of shape [seeds, rows], at least one of "
            f"each; got {correct.shape}. Check that the part judged on has rows."
        )
    if len(correct) == 1:
        return accuracy_interval(int(correct.sum()), correct.shape[1])
    generator = np.random.default_rng(seed)
    all_or_none = np.tile([True, False], (len(correct), 1))
    accuracies = resampled_accuracies(
        correct, all_or_none, PSEUDO_ROWS_OF_ONE, resamples, generator
    )
    return list(middle(mean_of_drawn_seeds(accuracies, generator)))


def paired_over_seeds(
    correct_a: BoolArray, correct_b: BoolArray, seed: int = 0, resamples: int = RESAMPLES
) -> PairedComparison:
    """Compare two methods, several training seeds each, on the same ``n`` test rows.

    Test rows and training seeds are both samples: other rows or other seeds would have given
    another difference. So both are resampled, crossed (the pigeonhole bootstrap: Owen 2007,
    Annals of Applied Statistics 1). The interval holds the middle 95 % of the resampled
    differences, and the p-value is twice the smaller share on either side of 0. Two corrections
    for small samples:

    * from ``k`` seeds, ``k - 1`` are drawn, not ``k``: the variance between seeds is then
      unbiased (Rao & Wu 1988); a single seed is kept, so its training noise is *not* counted;
    * Agresti & Min's two rows are added, so that a handful of disagreements is no certainty and
      one seed each gives the interval of `paired_comparison`.

    With three seeds each, simulated equal methods were called tied in 98 to 100 of 100 trials
    where rows are the main noise, in 87 to 90 where seeds are (their variance, known from three
    values, is known poorly). More seeds close that gap.

    Args:
        correct_a: which rows each run of a got right, ``[seeds of a, n]``.
        correct_b: the same for b, ``[seeds of b, n]``; the seed counts may differ (a baseline
            without randomness has one).
        seed: of the resampling; the same inputs and seed give the same answer.
        resamples: how many differences are drawn.

    Raises:
        DeltafitError: there are no rows or seeds, or the two were not measured on the same rows.
    """
    if correct_a.ndim != 2 or correct_b.ndim != 2:
        raise DeltafitError(_mismatch(correct_a, correct_b))
    return paired_over_settings(correct_a[None], correct_b[None], seed, resamples)


def paired_over_settings(
    correct_a: BoolArray, correct_b: BoolArray, seed: int = 0, resamples: int = RESAMPLES
) -> PairedComparison:
    """Compare two methods, each run under the same ``m`` settings of something else.

    Such as rank 4 and rank 8, each with four α: what is compared is the mean over these settings,
    which are taken as they are and not as a sample of others. Rows and seeds are resampled as in
    `paired_over_seeds`, and a drawn seed is one of all settings, since what a seed decides (the
    order of rows, the head's start) it decides for all of them alike.

    Args:
        correct_a: which rows each run of a got right, ``[m, seeds of a, n]``.
        correct_b: the same for b, ``[m, seeds of b, n]``, the settings in the same order.
        seed: of the resampling.
        resamples: how many differences are drawn.

    Raises:
        DeltafitError: as `paired_over_seeds`, or the numbers of settings differ.
    """
    shapes = correct_a.shape, correct_b.shape
    if (
        {len(shape) for shape in shapes} != {3}
        or (shapes[0][0], shapes[0][2]) != (shapes[1][0], shapes[1][2])
        or not correct_a.size * correct_b.size
    ):
        raise DeltafitError(_mismatch(correct_a, correct_b))
    generator = np.random.default_rng(seed)
    runs = np.concatenate([each.reshape(-1, each.shape[2]) for each in (correct_a, correct_b)])
    of_a = np.arange(len(runs)) < correct_a.shape[0] * correct_a.shape[1]
    # The four cells of (a right, b right), the same for all runs of a method.
    cells = np.stack([of_a, ~of_a, of_a | True, of_a & False], axis=1)
    accuracies = resampled_accuracies(runs, cells, PSEUDO_ROWS, resamples, generator)
    means = [
        mean_of_drawn_seeds(
            accuracies[:, which].reshape(resamples, *shape[:2]).mean(axis=1), generator
        )
        for which, shape in zip((of_a, ~of_a), shapes, strict=True)
    ]
    difference = float(correct_a.mean() - correct_b.mean())
    return compared_by_draws(difference, means[0] - means[1])


def compared_by_draws(difference: float, drawn: FloatArray) -> PairedComparison:
    """Return a comparison by its resampled differences ``[draws]``, as `paired_over_seeds` does."""
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (float(tail) + 1) / (len(drawn) + 1))
    return _comparison(difference, *middle(drawn), p_value)


def _comparison(difference: float, low: float, high: float, p_value: float) -> PairedComparison:
    low, high = max(low, -1.0), min(high, 1.0)
    within = low <= 0 <= high
    beyond = _is_beyond(p_value, within=within)
    return PairedComparison(difference, low, high, p_value, p_value, within, beyond)


def _is_beyond(p_value: float, *, within: bool) -> bool:
    return not within and p_value < 1 - LEVEL


def _mismatch(correct_a: NDArray[Any], correct_b: NDArray[Any]) -> str:
    return (
        "A paired comparison needs both methods measured on the same test rows, got answers of "
        f"shape {correct_a.shape} and {correct_b.shape}. Evaluate both on one test file."
    )
