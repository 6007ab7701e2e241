"""F1 by class against scikit-learn; differences and confusions that are there, and that are not."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from deltafit.experiments.class_statistics import (
    class_differences,
    class_f1,
    confusion_changes,
    macro_f1_interval,
)

NAMES = tuple("abcde")


def drawn(seeds: int = 3, count: int = 300, accuracy: float = 0.8, seed: int = 0) -> np.ndarray:
    """Labels ``[count]``, and under them what ``seeds`` runs said of them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(NAMES), size=count)
    others = generator.integers(0, len(NAMES), size=(seeds, count))
    right = generator.random((seeds, count)) < accuracy
    return np.vstack([labels, np.where(right, labels, others)])


def test_f1_is_what_scikit_learn_measures() -> None:
    labels, *said = drawn()
    labels[labels == 4] = 3  # no row of a class that is said; one neither met nor said
    found = class_f1(labels, np.stack(said), 6)
    for ours, answers in zip(found, said, strict=True):
        expected = f1_score(labels, answers, labels=range(6), average=None, zero_division=0)
        np.testing.assert_allclose(ours, expected)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_holds_macro_f1_and_widens_with_fewer_rows(seeds: int) -> None:
    widths = []
    for count in (100, 1600):
        labels, *said = drawn(seeds, count)
        macro = [f1_score(labels, answers, average="macro") for answers in said]
        low, high = macro_f1_interval(labels, np.stack(said), len(NAMES)) or (1, 0)
        assert low < np.mean(macro) < high
        widths.append(high - low)
    assert widths[0] > 2.5 * widths[1]


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
    found = {d.name: d for d in class_differences(labels, NAMES, counts, worse, reference)}
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
    assert mirrored[2].comparison.difference == -found["c"].comparison.difference


def test_equal_methods_rarely_differ_in_any_class() -> None:
    alarms = []
    for seed in range(25):
        labels, *said = drawn(2, 200, seed=seed)
        found = class_differences(labels, NAMES, (1,) * 5, *(each[None] for each in said))
        alarms.append(any(each.comparison.beyond_noise for each in found))
    assert np.mean(alarms) <= 0.12


def test_a_class_without_judged_rows_is_not_compared() -> None:
    labels, *said = drawn(2)
    labels[labels == 4] = 3
    found = class_differences(labels, NAMES, (1,) * 5, *(each[None] for each in said))
    assert [each.name for each in found] == list("abcd")


def test_confusions_are_counted_and_the_one_that_changed_comes_first() -> None:
    labels, *said = drawn(2, 900, accuracy=0.95)
    reference = np.stack(said)
    worse = np.where((labels == 2) & (np.arange(900) % 3 == 0), 0, reference)
    found = confusion_changes(labels, NAMES, worse, reference)
    first, *others = found.tested
    assert found.occurring == len(found.tested) == 19
    assert (first.truth, first.predicted) == ("c", "a") and first.comparison.beyond_noise
    beyond = {(c.truth, c.predicted) for c in others if c.comparison.beyond_noise}
    assert all(truth == "c" for truth, _ in beyond)  # rows that went elsewhere went to "a" now
    for each in (first, *others):
        a, b = NAMES.index(each.truth), NAMES.index(each.predicted)
        for rows, answers in ((each.rows, worse), (each.reference_rows, reference)):
            counted = [confusion_matrix(labels, one, labels=range(5))[a, b] for one in answers]
            assert rows == pytest.approx(np.mean(counted))


def test_what_nobody_confuses_is_no_confusion() -> None:
    labels = np.arange(30) % 3
    found = confusion_changes(labels, NAMES[:3], labels[None], labels[None])
    assert (found.occurring, found.tested) == (0, ())


def confused(
    counts: dict[tuple[int, int], tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two methods' answers with so many rows of each confusion, and 50 right a class."""
    labels, ours, theirs = [np.repeat(np.arange(5), 50)] * 3
    for (a, b), (mine, others) in counts.items():
        labels = np.append(labels, [a] * (mine + others))
        ours = np.append(ours, [b] * mine + [a] * others)
        theirs = np.append(theirs, [a] * mine + [b] * others)
    return labels, ours[None], theirs[None]


def test_the_confusions_tested_are_the_most_frequent_whatever_their_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frequent = {(0, 1): (10, 10), (1, 2): (9, 11), (2, 3): (12, 8)}
    changed = {(3, 4): (9, 0), (4, 0): (0, 8)}
    monkeypatch.setattr("deltafit.experiments.class_statistics.CONFUSIONS_TESTED", 3)
    found = confusion_changes(*_with_names(confused(frequent | changed)))
    assert found.occurring == 5
    assert {(NAMES.index(c.truth), NAMES.index(c.predicted)) for c in found.tested} == {*frequent}
    changes = [abs(c.rows - c.reference_rows) for c in found.tested]
    assert changes == sorted(changes, reverse=True) == [4, 2, 0]


def test_confusions_are_corrected_for_all_that_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone a change is beyond noise; among all the confusions that occur it is undecided."""
    monkeypatch.setattr("deltafit.experiments.class_statistics.CONFUSIONS_TESTED", 20)
    pairs = [(a, b) for a in range(5) for b in range(5) if a != b]
    changed = {pairs[0]: (9, 1)}
    alone = confusion_changes(*_with_names(confused(changed))).tested[0]
    among = confusion_changes(*_with_names(confused(dict.fromkeys(pairs, (5, 5)) | changed))).tested
    assert len(among) == 20 and among[0].truth == alone.truth
    assert alone.comparison.beyond_noise
    assert not among[0].comparison.within_noise and not among[0].comparison.beyond_noise
    assert among[0].comparison.adjusted_p_value == pytest.approx(20 * among[0].comparison.p_value)


def _with_names(
    made: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, np.ndarray]:
    labels, ours, theirs = made
    return labels, NAMES, ours, theirs


def test_equal_methods_rarely_differ_in_any_confusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """More confusions than are tested: to test those with the largest changes would alarm."""
    monkeypatch.setattr("deltafit.experiments.class_statistics.CONFUSIONS_TESTED", 6)
    alarms = []
    for seed in range(25):
        labels, *said = drawn(2, 300, accuracy=0.5, seed=seed)
        found = confusion_changes(labels, NAMES, *(each[None] for each in said))
        assert found.occurring > len(found.tested) == 6
        alarms.append(any(change.comparison.beyond_noise for change in found.tested))
    assert np.mean(alarms) <= 0.12
