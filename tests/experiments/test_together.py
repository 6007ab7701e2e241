"""All pairs at once against formulas, a plain step-down, Welch's interval, and simulation."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind

from deltafit.errors import DeltafitError
from deltafit.experiments.resampling import SeedNoise, at_least_the_average
from deltafit.experiments.statistics import corrected, holm, paired_comparison
from deltafit.experiments.together import Known, Together, compared_together, paired_over_seeds
from tests.experiments.right_answers import answers, runs_of_one_method


def test_one_seed_each_gives_the_interval_of_one_run_each() -> None:
    a, b = answers(880, 60, 35, 25)
    single, seeded = paired_comparison(a, b), paired_over_seeds(a[None], b[None])
    assert seeded.difference == pytest.approx(single.difference)
    assert (seeded.low, seeded.high) == pytest.approx((single.low, single.high), abs=1e-3)
    assert seeded.p_value == pytest.approx(single.p_value, abs=0.01)


def test_seeds_that_vary_widen_the_interval() -> None:
    rows = 1000
    steady = np.arange(rows) < 900
    a_varying = np.stack([np.arange(rows) < level for level in (860, 920, 980)])
    a_steady = np.stack([np.arange(rows) < 920] * 3)
    b = steady[None]
    varying, calm = paired_over_seeds(a_varying, b), paired_over_seeds(a_steady, b)
    assert varying.difference == pytest.approx(calm.difference) == pytest.approx(0.02)
    assert varying.within_noise
    assert not calm.within_noise


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_where_seeds_are_all_the_noise_the_interval_is_welchs(seeds: int) -> None:
    """Rows so many that they add nothing; two methods whose seeds vary equally."""
    rows, generator = 40_000, np.random.default_rng(seeds)
    shifts = generator.normal(0, 0.02, seeds)
    levels = [0.9 + shifts, 0.85 - shifts]
    correct = [np.stack([generator.random(rows) < level for level in each]) for each in levels]
    found = paired_over_seeds(*correct)
    by_seed = [each.mean(axis=1) for each in correct]
    expected = ttest_ind(*by_seed, equal_var=False)
    low, high = expected.confidence_interval()
    width = found.high - found.low
    assert width == pytest.approx(high - low, rel=0.25 if seeds == 2 else 0.1)
    assert (found.low + found.high) / 2 == pytest.approx((low + high) / 2, abs=0.02 * width)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.03)


def test_a_handful_of_disagreements_over_seeds_is_no_certainty() -> None:
    a, b = answers(196, 4, 0, 0)
    assert paired_over_seeds(np.stack([a] * 3), np.stack([b] * 3)).within_noise


def stepped_down(far: np.ndarray, by_chance: np.ndarray) -> np.ndarray:
    """Corrected p-values hypothesis by hypothesis, the farthest first."""
    left, among, last = [*range(len(far))], np.zeros(len(far)), 0.0
    while left:
        farthest = max(left, key=lambda index: far[index])
        largest = [max(draw[index] for index in left) for draw in by_chance]
        reached = sum(each >= far[farthest] for each in largest)
        last = max(last, (reached + 1) / (len(by_chance) + 1))
        among[farthest] = last
        left.remove(farthest)
    return among


def test_corrected_p_values_are_those_of_a_plain_step_down() -> None:
    generator = np.random.default_rng(12)
    for size in (1, 2, 7):
        truth = generator.normal(0, 2, size)
        drawn = truth + generator.normal(size=(300, size)) @ generator.normal(size=(size, size))
        centre, error = drawn.mean(axis=0), drawn.std(axis=0)
        known = Known(centre / 100, error / 100, np.full(size, np.inf))
        found = compared_together(truth / 100, drawn / 100, known, known)
        centre, error = drawn.mean(axis=0), drawn.std(axis=0)
        by_chance = np.abs(drawn - centre) / error
        expected = stepped_down(np.abs(centre) / error, by_chance)
        expected = np.maximum(expected, 2 * norm.sf(np.abs(centre) / error))
        assert [each.adjusted_p_value for each in found] == pytest.approx(expected)
        alone = 2 * norm.sf(np.abs(centre) / error)
        assert [each.p_value for each in found] == pytest.approx(alone)
        for each, one in zip(found, drawn.T / 100, strict=True):
            assert (each.low + each.high) / 2 == pytest.approx(one.mean())
            assert each.high - each.low == pytest.approx(2 * norm.ppf(0.975) * one.std())


def test_it_is_reproducible_and_mirrors_and_the_order_of_methods_matters_little() -> None:
    generator = np.random.default_rng(4)
    methods = [generator.random((k, 500)) < level for k, level in ((3, 0.93), (2, 0.9), (1, 0.8))]
    found = Together(methods)
    assert found.compare(0, 2) == Together(methods).compare(0, 2)
    again = Together(methods, seed=1).compare(0, 1)
    assert found.compare(0, 1).adjusted_p_value == pytest.approx(again.adjusted_p_value, abs=0.02)
    forward, backward = found.compare(0, 2), found.compare(2, 0)
    assert (backward.difference, backward.low, backward.high) == (
        -forward.difference, -forward.high, -forward.low
    )  # fmt: skip
    assert (backward.p_value, backward.beyond_noise) == (forward.p_value, forward.beyond_noise)
    turned = Together(methods[::-1]).compare(2, 0)
    assert (turned.low, turned.high) == pytest.approx((forward.low, forward.high), abs=3e-3)


def test_more_methods_take_wins_away_and_make_none_and_no_tie() -> None:
    generator = np.random.default_rng(9)
    for _ in range(20):
        methods = [generator.random((1, 300)) < level for level in generator.uniform(0.8, 0.95, 9)]
        alone, among = Together(methods[:2]).compare(0, 1), Together(methods).compare(0, 1)
        assert among.adjusted_p_value >= among.p_value == alone.p_value
        assert (among.low, among.high) == (alone.low, alone.high)
    a, b = answers(220, 8, 22, 50)
    alone = Together([a[None], b[None]]).compare(0, 1)
    strangers = [generator.random((1, 300)) < 0.8 for _ in range(19)]
    among = Together([a[None], b[None], *strangers]).compare(0, 1)
    assert alone.beyond_noise
    assert not among.beyond_noise and not among.within_noise


def test_a_method_that_varies_widely_makes_no_tie_of_the_others() -> None:
    generator = np.random.default_rng(15)
    rows = np.arange(1000)
    good, worse = (np.stack([rows < level + k for k in (-3, 0, 3)]) for level in (950, 900))
    wild = np.stack([generator.random(1000) < level for level in (0.3, 0.9, 0.95)])
    alone = Together([good, worse]).compare(0, 1)
    among = Together([good, worse, wild]).compare(0, 1)
    assert not alone.within_noise and alone.beyond_noise
    assert (among.low, among.high, among.p_value) == (alone.low, alone.high, alone.p_value)
    assert among.adjusted_p_value > alone.adjusted_p_value


def test_seeds_that_agree_by_chance_count_for_what_all_show() -> None:
    lone = SeedNoise.of(np.array([0.9]))
    calm, wide = (SeedNoise.of(np.array(each)) for each in ([0.9, 0.9], [0.8, 0.9, 1.0]))
    one, two, three = at_least_the_average([lone, calm, wide])
    assert one == lone and three == wide
    # Of one run: (0 · 1 + 0.01 · 2) / 3, with three degrees of freedom.
    assert two.variance == pytest.approx(0.01 * 2 / 3 / 2) and two.degrees == 3
    assert at_least_the_average([lone, lone]) == [lone, lone]
    assert at_least_the_average([wide, wide]) == [wide, wide]


def test_all_pairs_together_pay_less_than_a_bound_would_ask() -> None:
    generator = np.random.default_rng(13)
    ease = generator.normal(1.5, 1.0, 500)
    shifts = np.linspace(0, 0.6, 8)
    methods = [(ease + shift + generator.normal(size=500) > 0)[None] for shift in shifts]
    together = Together(methods)
    found = [together.compare(a, b) for a, b in combinations(range(8), 2)]
    bound = holm([each.p_value for each in found])
    ours = [each.adjusted_p_value for each in found]
    decided = [(one, other) for one, other in zip(ours, bound, strict=True) if 0.005 < one < 0.5]
    assert decided and all(one < other for one, other in decided)


@pytest.mark.parametrize(
    ("methods", "seeds", "between"),
    [
        (8, 1, 0.0),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (
            *((2, 1, 0.0), (20, 1, 0.0), (2, 2, 0.05), (2, 2, 0.5), (8, 2, 0.5), (20, 2, 0.1)),
            *((20, 2, 0.5), (2, 3, 0.1), (2, 3, 0.5), (20, 3, 0.5), (20, 5, 0.1), (20, 5, 0.5)),
        )),
    ],
)  # fmt: skip
def test_of_equal_methods_none_is_called_worse_than_the_one_that_looks_best(
    methods: int, seeds: int, between: float
) -> None:
    generator = np.random.default_rng(8)
    false_alarms, excluded = [], []
    for _ in range(200 if methods < 20 else 120):
        ease = generator.normal(1.9, 1.0, size=300)
        own = generator.normal(0, 1.0, size=(methods, seeds, 300))
        shift = generator.normal(0, between, size=(methods, seeds, 1))
        correct = ease + own + shift > 0
        together = Together([*correct], resamples=2_000)
        best = int(np.argmax(correct.mean(axis=(1, 2))))
        found = [together.compare(other, best) for other in range(methods) if other != best]
        false_alarms.append(any(each.beyond_noise for each in found))
        excluded.append(not together.compare(0, 1).within_noise)
    assert np.mean(false_alarms) <= 0.07
    assert np.mean(excluded) <= 0.08


def test_counting_the_comparisons_with_the_best_alone_is_not_enough() -> None:
    """Why all pairs are one family."""
    generator = np.random.default_rng(16)
    false_alarms = []
    for _ in range(200):
        correct = generator.random((20, 300)) < 0.9
        best = int(np.argmax(correct.mean(axis=1)))
        others = [each for index, each in enumerate(correct) if index != best]
        found = corrected([paired_comparison(each, correct[best]) for each in others])
        false_alarms.append(any(each.beyond_noise for each in found))
    assert np.mean(false_alarms) > 0.1


def test_one_method_that_varies_widely_beside_steady_ones_is_rarely_told_apart() -> None:
    """Two seeds each: what the others show of seeds says too little of this one."""
    generator = np.random.default_rng(14)
    wrong = 0
    for _ in range(100):
        steady = [runs_of_one_method(generator, 0.02, 2) for _ in range(5)]
        wild = runs_of_one_method(generator, 0.6, 2)
        together = Together([wild, *steady], resamples=1_000)
        wrong += any(together.compare(0, other).beyond_noise for other in range(1, 6))
    assert wrong / 100 <= 0.2


@pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 4)), ((0, 3), (1, 3)), ((3,), (3,))])
def test_seeded_answers_on_different_rows_are_refused(
    a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    with pytest.raises(DeltafitError, match="same test rows"):
        paired_over_seeds(np.ones(a, dtype=bool), np.ones(b, dtype=bool))


def test_means_over_settings_are_compared_as_the_formula_for_paired_means_has_it() -> None:
    """One seed, four settings: the variance of the row-wise mean difference, by hand."""
    generator = np.random.default_rng(10)
    ease = generator.normal(1.2, 1, size=800)
    a, b = (ease + shift + generator.normal(0, 0.8, size=(4, 1, 800)) > 0 for shift in (0.0, 0.12))
    found = Together([a, b]).compare(0, 1)
    by_row = a.mean(axis=(0, 1)) - b.mean(axis=(0, 1))
    assert found.difference == pytest.approx(by_row.mean())
    half = 1.96 * by_row.std() / 800**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    # Taken as they are, four settings say more than one of them, and the order of rows nothing.
    single = paired_over_seeds(a[0], b[0])
    assert found.high - found.low < single.high - single.low
    order = generator.permutation(800)
    shuffled = Together([a[..., order], b[..., order]]).compare(0, 1)
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high), abs=1e-3)


def test_one_setting_is_a_comparison_over_seeds_and_a_seed_is_one_of_all_settings() -> None:
    generator = np.random.default_rng(11)
    a, b = generator.random((3, 400)) < 0.9, generator.random((2, 400)) < 0.85
    assert Together([a[None], b[None]]).compare(0, 1) == paired_over_seeds(a, b)
    # Seeds that shift all settings alike stay noise, however many settings share them.
    rows = np.arange(1000)
    varying = np.stack([np.stack([rows < level for level in (860, 920, 980)])] * 6)
    steady = np.stack([rows < 900] * 3)[None].repeat(6, axis=0)
    assert Together([varying, steady]).compare(0, 1).within_noise
    with pytest.raises(DeltafitError, match="same test rows"):
        Together([varying, steady[:2]])
