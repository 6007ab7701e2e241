"""F1 by class against scikit-learn; differences that are there, and that are not."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from deltafit.experiments.class_statistics import (
    class_differences,
    class_f1,
    macro_f1_interval,
)
from tests.experiments.labelled import NAMES, drawn


def test_f1_is_what_scikit_learn_measures() -> None:
    labels, *said = drawn()
    labels[labels == 4] = 3  # no row of a class that is said; one neither met nor said
    found = class_f1(labels, np.stack(said), 6)
    for ours, answers in zip(found, said, strict=True):
        expected = f1_score(labels, answers, labels=range(6), average=None, zero_division=0)
        np.testing.assert_allclose(ours, expected)


@pytest.mark.parametrize(("seeds", "times"), [(1, 2.5), (3, 1.8)])
def test_the_interval_holds_macro_f1_and_widens_with_fewer_rows(seeds: int, times: float) -> None:
    widths = []
    for count in (100, 1600):
        labels, *said = drawn(seeds, count)
        macro = [f1_score(labels, answers, average="macro") for answers in said]
        low, high = macro_f1_interval(labels, np.stack(said), len(NAMES)) or (1, 0)
        assert low < np.mean(macro) < high
        widths.append(high - low)
    # Of three seeds much of it is what they may have in common, whatever the rows.
    assert widths[0] > times * widths[1]


def test_seeds_that_vary_widen_the_interval_of_macro_f1() -> None:
    labels, *_ = drawn()
    steady = drawn(accuracy=0.8)[1:]
    varying = np.stack([drawn(1, accuracy=accuracy)[1] for accuracy in (0.6, 0.8, 0.99)])
    calm, wide = (macro_f1_interval(labels, said, len(NAMES)) for said in (steady, varying))
    assert calm is not None and wide is not None and np.ptp(wide) > 1.5 * np.ptp(calm)


def test_no_errors_have_no_interval() -> None:
    labels = np.arange(20) % 3
    assert macro_f1_interval(labels, labels[None], 3) is None


def test_a_class_that_got_worse_is_found_and_the_others_are_not() -> None:
    labels, *said = drawn(2, 900, accuracy=0.95)
    reference = np.stack(said)
    worse = np.where((labels == 2) & (np.arange(900) % 2 == 0), 0, reference)
    counts = (100, 100, 100, 100, 40)
    found = {d.name: d for d in class_differences(labels, NAMES, counts, worse, reference).classes}
    assert [name for name, d in found.items() if d.rare] == ["e"]
    assert found["c"].comparison.beyond_noise and found["c"].comparison.difference < -0.2
    assert all(found[name].comparison.within_noise for name in "bde")
    ours, theirs = class_f1(labels, worse, 5), class_f1(labels, reference, 5)
    for index, each in enumerate(found.values()):
        assert each.support == (labels == index).sum()
        assert each.f1 == pytest.approx(ours[:, index].mean())
        assert each.comparison.difference == pytest.approx((ours - theirs)[:, index].mean())
        assert each.comparison.low <= each.comparison.difference <= each.comparison.high
    mirrored = class_differences(labels, NAMES, counts, reference, worse)
    assert mirrored.classes[2].comparison.difference == -found["c"].comparison.difference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "rows", "seeds", "accuracy", "between"),
    [
        *((5, 40, 1, 0.8, 0), (5, 60, 3, 0.9, 0), (77, 40, 1, 0.88, 0), (77, 40, 1, 0.97, 0)),
        *((20, 40, 2, 0.9, 0.3), (20, 40, 3, 0.9, 0.3)),
    ],
)
def test_equal_methods_rarely_differ_in_any_class(
    classes: int, rows: int, seeds: int, accuracy: float, between: float
) -> None:
    """Also where classes are many, and each has few rows with few errors."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), rows)
    names, counts = tuple(map(str, range(classes))), (1,) * 4 + (9,) * (classes - 4)
    alarms, alone, groups = [], [], []
    for _ in range(60 if classes > 5 else 200):
        hard, mistaken = generator.normal(size=labels.shape), generator.integers(1, 4, labels.shape)
        own = generator.normal(size=(2, seeds, labels.size))
        own += generator.normal(0, between, size=(2, seeds, 1))  # of a seed, the same for all rows
        right = (hard + own) / 2**0.5 < norm.ppf(accuracy)
        said = np.where(right, labels, (labels + mistaken) % classes)
        found = class_differences(labels, names, counts, *said)
        alarms.append(any(each.comparison.beyond_noise for each in found.classes))
        alone.append(np.mean([not each.comparison.within_noise for each in found.classes]))
        assert found.rare is not None and found.others is not None
        groups.append(found.rare.beyond_noise or found.others.beyond_noise)
    assert np.mean(alarms) <= 0.07
    assert np.mean(alone) <= 0.06
    assert np.mean(groups) <= 0.07


def test_classes_with_a_row_each_that_are_never_said_stay_within_bounds() -> None:
    labels = np.arange(100)
    ours = np.where(labels % 3 == 0, 0, labels)[None]
    theirs = np.where(labels % 2 == 0, 0, labels)[None]
    counts = (1,) * 10 + (50,) * 90
    found = class_differences(labels, tuple(map(str, labels)), counts, ours, theirs)
    assert found.rare is not None and found.others is not None
    assert found.others.high - found.others.low < 0.4
    for each in found.classes:
        assert -1 <= each.comparison.low <= each.comparison.high <= 1


def test_rare_classes_and_the_others_are_compared_by_their_mean() -> None:
    labels, *said = drawn(2, 900, accuracy=0.95)
    reference = np.stack(said)
    rare = (labels >= 3) & (np.arange(900) % 3 == 0)
    worse = np.where(rare, (labels + 1) % 5, reference)
    found = class_differences(labels, NAMES, (200, 200, 200, 20, 20), worse, reference)
    assert found.rare is not None and found.others is not None
    assert found.rare.beyond_noise and found.rare.difference < -0.1
    f1 = [
        [f1_score(labels, answers, average=None)[3:].mean() for answers in each]
        for each in (worse, reference)
    ]
    assert found.rare.difference == pytest.approx(np.mean(f1[0]) - np.mean(f1[1]))
    # Its interval is narrower than that of either class, which have half of its rows.
    widths = [each.comparison.high - each.comparison.low for each in found.classes[3:]]
    assert found.rare.high - found.rare.low < min(widths)
    even = class_differences(labels, NAMES, (100,) * 5, worse, reference)
    assert (even.rare, even.others) == (None, None)


def test_a_mean_over_many_classes_lies_in_its_interval() -> None:
    labels = np.repeat(np.arange(77), 40)
    generator = np.random.default_rng(0)
    reference = np.where(generator.random(labels.size) < 0.92, labels, (labels + 1) % 77)[None]
    # As a method that learned rare classes not at all and half of the rows of others.
    half = np.where(generator.random(labels.size) < 0.5, labels, (labels + 2) % 77)
    worse = np.where(labels < 4, 50, half)[None]
    names, counts = tuple(map(str, range(77))), (20,) * 4 + (120,) * 73
    found = class_differences(labels, names, counts, worse, reference)
    for each in (found.rare, found.others):
        assert each is not None and each.beyond_noise
        assert each.low < each.difference < each.high


def test_a_class_without_judged_rows_is_not_compared() -> None:
    labels, *said = drawn(2)
    labels[labels == 4] = 3
    found = class_differences(labels, NAMES, (1,) * 5, *(each[None] for each in said))
    assert [each.name for each in found.classes] == list("abcd")
