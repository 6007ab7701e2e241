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

import numpy as np
from scipy.stats import binomtest, norm

from deltafit.errors import DeltafitError
from deltafit.experiments.resampling import LEVEL, BoolArray, SeedNoise, interval_of_share
from deltafit.tasks.metrics import accuracy_interval

# Agresti & Min add two rows in all to the 2 × 2 table of (a right, b right), half a one a cell.
_HALF_A_ROW = 0.5


@dataclass(frozen=True)
class PairedComparison:
    """The accuracy of a minus that of b on the same rows, as a fraction (0.01 is one point).

    Attributes:
        difference: as measured.
        low: lower end of the 95 % interval of the difference.
        high: upper end; the interval is not exactly symmetric about ``difference``.
        p_value: two-sided, for "a and b are equally good".
        adjusted_p_value: the same, corrected for the comparisons made beside it.
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
        raise DeltafitError(mismatch([correct_a.shape, correct_b.shape]))
    count = correct_a.size
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    disagreements = only_a + only_b
    p_value = float(binomtest(only_a, disagreements).pvalue) if disagreements else 1.0

    rows = count + 4 * _HALF_A_ROW
    centre = (only_a - only_b) / rows
    variance = ((disagreements + 2 * _HALF_A_ROW) / rows - centre**2) / rows
    half = float(norm.ppf(0.5 + LEVEL / 2)) * variance**0.5
    measured = (only_a - only_b) / count
    return comparison_of(measured, centre - half, centre + half, p_value, p_value)


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


def mean_accuracy_interval(correct: BoolArray) -> list[float]:
    """Return the 95 % interval ``[low, high]`` of a method's accuracy, the mean over its seeds.

    Of one seed it is Wilson's, which holds the sampling of the rows alone. Of several it is
    Student's, with the variance of rows and that of seeds, the latter with Satterthwaite's degrees
    of freedom, as in `deltafit.experiments.together.Together`. Agresti & Coull (1998, The American
    Statistician 52) add two rows that are right and two that are wrong, so that no errors are no
    certainty.

    Args:
        correct: which rows each run got right, ``[seeds, n]``.

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
    noise = SeedNoise.of(correct.mean(axis=1))
    by_row = np.append(correct.mean(axis=0), [0.0, 0.0, 1.0, 1.0])
    variance = by_row.var() / len(by_row) + noise.variance
    return interval_of_share(by_row.mean(), variance, noise)


def comparison_of(
    difference: float, low: float, high: float, p_value: float, adjusted: float
) -> PairedComparison:
    """Return a comparison with what follows from its figures; an interval ends at ±1."""
    low, high = max(low, -1.0), min(high, 1.0)
    within = low <= 0 <= high
    beyond = _is_beyond(adjusted, within=within)
    return PairedComparison(difference, low, high, p_value, adjusted, within, beyond)


def mirrored(comparison: PairedComparison) -> PairedComparison:
    """Return the comparison of b with a."""
    difference, low, high = -comparison.difference, -comparison.high, -comparison.low
    return replace(comparison, difference=difference, low=low, high=high)


def _is_beyond(p_value: float, *, within: bool) -> bool:
    return not within and p_value < 1 - LEVEL


def mismatch(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return what to tell whoever compares answers of such shapes."""
    return (
        "A paired comparison needs all methods measured on the same test rows, got answers of "
        f"shape {' and '.join(map(str, shapes))}. Evaluate all on one test file."
    )
