"""Paired tests against hand-worked formulas, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from deltafit.errors import DeltafitError
from deltafit.experiments.statistics import (
    corrected,
    holm,
    mean_accuracy_interval,
    paired_comparison,
    smallest_visible_difference,
)
from deltafit.tasks.metrics import accuracy_interval
from tests.experiments.right_answers import answers, runs_of_one_method


@pytest.mark.parametrize("cells", [(80, 9, 3, 8), (5, 1, 0, 4), (0, 6, 6, 0), (900, 40, 70, 10)])
def test_interval_and_p_value_by_hand(cells: tuple[int, int, int, int]) -> None:
    result = paired_comparison(*answers(*cells))
    _, only_a, only_b, _ = cells
    n = sum(cells)
    assert result.difference == pytest.approx((only_a - only_b) / n)
    # Agresti & Min 2005: Wald on the table with 1/2 added to each of its four cells.
    b, c, m = only_a + 0.5, only_b + 0.5, n + 2
    half = 1.959963984540054 * math.sqrt((b + c) - (b - c) ** 2 / m) / m
    assert result.low == pytest.approx((b - c) / m - half)
    assert result.high == pytest.approx((b - c) / m + half)
    # McNemar, exact: twice the smaller tail of Binomial(b + c, 1/2).
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1)) / 2**total
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))


def test_swapping_the_methods_mirrors_the_result() -> None:
    a, b = answers(70, 20, 6, 4)
    forward, backward = paired_comparison(a, b), paired_comparison(b, a)
    assert backward.difference == -forward.difference
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))
    assert backward.p_value == pytest.approx(forward.p_value)
    assert not forward.within_noise
    assert not backward.within_noise


def test_no_disagreement_is_a_tie_with_an_interval_of_its_own() -> None:
    a, _ = answers(8, 0, 0, 2)
    result = paired_comparison(a, a)
    assert (result.difference, result.p_value, result.within_noise) == (0, 1, True)
    assert result.low < 0 < result.high


def test_interval_stays_within_possible_differences() -> None:
    result = paired_comparison(np.array([True, True]), np.array([False, False]))
    assert result.high == 1
    assert result.within_noise


def test_pairing_sees_what_separate_intervals_would_miss() -> None:
    # 90.0 against 91.2 per cent on 1,000 rows: the Wilson intervals overlap by far.
    result = paired_comparison(*answers(899, 1, 13, 87))
    assert not result.within_noise
    assert result.p_value < 0.01


def draw_answers(
    generator: np.random.Generator, trials: int, rows: int, cells: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    cell = generator.choice(4, size=(trials, rows), p=cells)
    return cell <= 1, (cell == 0) | (cell == 2)


@pytest.mark.parametrize("cells", [(0.85, 0.05, 0.05, 0.05), (0.9, 0.06, 0.01, 0.03)])
def test_interval_covers_the_truth_in_about_95_of_100(cells: tuple[float, ...]) -> None:
    a, b = draw_answers(np.random.default_rng(1), trials=600, rows=150, cells=cells)
    truth = cells[1] - cells[2]
    results = [paired_comparison(*pair) for pair in zip(a, b, strict=True)]
    covered = np.mean([result.low <= truth <= result.high for result in results])
    assert 0.93 <= covered <= 0.985


def test_equal_methods_are_rarely_called_different() -> None:
    a, b = draw_answers(np.random.default_rng(2), 600, 200, (0.88, 0.03, 0.03, 0.06))
    results = [paired_comparison(*pair) for pair in zip(a, b, strict=True)]
    assert np.mean([not result.within_noise for result in results]) <= 0.07


@pytest.mark.parametrize(
    ("a", "b"), [((3,), (4,)), ((0,), (0,)), ((1, 3), (1, 3))], ids=["rows", "none", "seeds"]
)
def test_answers_on_different_rows_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(DeltafitError, match="same test rows"):
        paired_comparison(np.ones(a, dtype=bool), np.ones(b, dtype=bool))


@pytest.mark.parametrize("between", [0.0, 0.1, 0.3])
def test_the_interval_of_a_mean_accuracy_holds_rows_and_seeds(between: float) -> None:
    generator = np.random.default_rng(5)
    # Ease, shift and noise are normal, so the expected accuracy is known.
    truth = norm.cdf(1.5 / math.sqrt(1.5**2 + between**2 + 0.5**2))
    held, of_rows_alone = [], []
    for _ in range(200):
        correct = runs_of_one_method(generator, between, runs=3)
        low, high = mean_accuracy_interval(correct)
        assert low <= correct.mean() <= high
        held.append(low <= truth <= high)
        low, high = accuracy_interval(round(correct.mean() * 300), 300)
        of_rows_alone.append(low <= truth <= high)
    assert np.mean(held) >= 0.93
    if between == 0.3:
        assert np.mean(of_rows_alone) < 0.88 < np.mean(held)


def test_the_interval_of_one_seed_is_wilsons_and_of_equal_seeds_close_to_it() -> None:
    correct = np.random.default_rng(6).random((1, 400)) < 0.9
    wilson = accuracy_interval(int(correct.sum()), 400)
    assert mean_accuracy_interval(correct) == wilson
    # Three seeds that agree on every row know no more than one.
    assert mean_accuracy_interval(np.repeat(correct, 3, axis=0)) == pytest.approx(wilson, abs=5e-3)


@pytest.mark.parametrize("rows", [1, 3, 40, 3000])
def test_no_errors_are_no_certainty_over_seeds(rows: int) -> None:
    low, high = mean_accuracy_interval(np.ones((3, rows), dtype=bool))
    assert high == 1
    assert low == pytest.approx(accuracy_interval(rows, rows)[0], abs=0.25 if rows < 9 else 0.05)
    low, high = mean_accuracy_interval(np.zeros((3, rows), dtype=bool))
    assert low == 0 < high < 1


def test_seeds_that_vary_widen_the_interval_of_their_mean() -> None:
    rows = np.arange(1000)
    varying = np.stack([rows < level for level in (860, 920, 980)])
    calm = np.stack([rows < 920] * 3)
    width = {name: np.ptp(mean_accuracy_interval(c)) for name, c in [("v", varying), ("c", calm)]}
    assert width["v"] > 2 * width["c"]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (3,)])
def test_an_interval_of_no_answers_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DeltafitError, match="at least one of each"):
        mean_accuracy_interval(np.ones(shape, dtype=bool))


@pytest.mark.parametrize("count", [3, 8, 12, 60, 300, 3080])
def test_the_smallest_visible_difference_is_at_the_edge_of_noise(count: int) -> None:
    difference = smallest_visible_difference(count)
    assert difference is not None
    rows = round(difference * count)
    # By hand: Agresti & Min's interval of `rows` disagreements, all of one kind, excludes 0.
    for disagreements, visible in ((rows, True), (rows - 1, False)):
        centre = disagreements / (count + 2)
        variance = ((disagreements + 1) / (count + 2) - centre**2) / (count + 2)
        assert (centre > 1.959963984540054 * math.sqrt(variance)) == visible


@pytest.mark.parametrize("count", [0, 1, 2])
def test_so_few_rows_show_no_difference_at_all(count: int) -> None:
    assert smallest_visible_difference(count) is None


def holm_by_closure(p_values: list[float]) -> list[float]:
    """A hypothesis falls when Bonferroni rejects every intersection of hypotheses with it."""
    indices = range(len(p_values))
    subsets = [s for k in indices for s in itertools.combinations(indices, k + 1)]
    local = {s: min(1.0, len(s) * min(p_values[index] for index in s)) for s in subsets}
    return [max(value for s, value in local.items() if index in s) for index in indices]


@pytest.mark.parametrize("count", range(1, 8))
def test_holm_is_bonferroni_closed_over_all_intersections(count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(20):
        p_values = [float(p) for p in generator.random(count) ** 3]
        p_values[-1] = p_values[0]  # a tie
        assert holm(p_values) == pytest.approx(holm_by_closure(p_values))


def test_holm_keeps_one_value_and_none_and_never_exceeds_one() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.9, 0.01, 0.8]) == pytest.approx([1.0, 0.03, 1.0])


def test_holm_rejects_true_hypotheses_as_rarely_as_promised() -> None:
    drawn = np.random.default_rng(7).random((2000, 9))
    assert np.mean([min(holm(list(p_values))) <= 0.05 for p_values in drawn]) <= 0.06


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_holm_refuses_what_is_no_probability(value: float) -> None:
    with pytest.raises(DeltafitError, match="between 0 and 1"):
        holm([0.5, value])


def test_a_difference_that_stands_alone_is_undecided_among_many_and_never_noise() -> None:
    edge = paired_comparison(*answers(880, 30, 14, 76))
    assert edge.beyond_noise and edge.adjusted_p_value == edge.p_value < 0.05
    assert corrected([edge]) == [edge]
    clear, none = (
        paired_comparison(*answers(800, 150, 10, 40)),
        paired_comparison(*answers(9, 0, 0, 1)),
    )
    for number, beyond_noise in ((1, True), (20, False)):
        first, *rest, last = corrected([edge, *[none] * (number - 1), clear])
        assert first.beyond_noise is beyond_noise and last.beyond_noise
        assert not first.within_noise and all(each.within_noise for each in rest)
        assert (first.low, first.high, first.p_value) == (edge.low, edge.high, edge.p_value)
    assert corrected([]) == []


def exact_mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided, from the binomial coefficients alone."""
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


# Rows that only a, and that only b got right of 300; at 21 comparisons.
@pytest.mark.parametrize(
    ("only_a", "only_b", "alone", "among"),
    [
        (14, 16, "within", "within"),
        (10, 20, "within", "within"),  # p = 0.099
        (8, 22, "beyond", "undecided"),  # p = 0.016
        (6, 22, "beyond", "undecided"),  # p = 0.0037
        (2, 25, "beyond", "beyond"),
        (25, 2, "beyond", "beyond"),
    ],
)
def test_outcomes_follow_from_discordant_rows_by_hand(
    only_a: int, only_b: int, alone: str, among: str
) -> None:
    pair = answers(250 - only_a, only_a, only_b, 50 - only_b)
    p_value = exact_mcnemar(only_a, only_b)
    b, c, m = only_a + 0.5, only_b + 0.5, 302
    half = 1.959963984540054 * math.sqrt((b + c) - (b - c) ** 2 / m) / m
    within = abs(b - c) / m <= half
    one = paired_comparison(*pair)
    # Twenty others with smaller p-values would let it pass by Holm's steps; equal ones do not.
    for found, times, said in ((one, 1, alone), (corrected([one] * 21)[0], 21, among)):
        assert found.within_noise == within == (said == "within")
        assert found.beyond_noise == (not within and times * p_value < 0.05) == (said == "beyond")


def test_more_comparisons_make_no_tie_and_never_a_win() -> None:
    """Whatever stands beside it, a worse method stays as far from a tie as it was."""
    generator = np.random.default_rng(9)
    for _ in range(40):
        found = [
            paired_comparison(*(generator.random((2, 300)) < generator.uniform(0.8, 0.95, (2, 1))))
            for _ in range(8)
        ]
        for few in range(1, 9):
            for before, after in zip(found[:few], corrected(found[:few]), strict=True):
                assert after.within_noise == before.within_noise
                assert before.beyond_noise or not after.beyond_noise
