"""Confusions against scikit-learn's matrix; changes that are there, and that are not."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from deltafit.experiments.confusion_statistics import confusion_changes
from tests.experiments.labelled import NAMES, drawn


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
    monkeypatch.setattr("deltafit.experiments.confusion_statistics.CONFUSIONS_TESTED", 3)
    found = confusion_changes(*_with_names(confused(frequent | changed)))
    assert found.occurring == 5
    assert {(NAMES.index(c.truth), NAMES.index(c.predicted)) for c in found.tested} == {*frequent}
    changes = [abs(c.rows - c.reference_rows) for c in found.tested]
    assert changes == sorted(changes, reverse=True) == [4, 2, 0]


def test_confusions_are_corrected_for_all_that_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone a change is beyond noise; among all the confusions that occur it is undecided."""
    monkeypatch.setattr("deltafit.experiments.confusion_statistics.CONFUSIONS_TESTED", 20)
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
    monkeypatch.setattr("deltafit.experiments.confusion_statistics.CONFUSIONS_TESTED", 6)
    alarms = []
    for seed in range(25):
        labels, *said = drawn(2, 300, accuracy=0.5, seed=seed)
        found = confusion_changes(labels, NAMES, *(each[None] for each in said))
        assert found.occurring > len(found.tested) == 6
        alarms.append(any(change.comparison.beyond_noise for change in found.tested))
    assert np.mean(alarms) <= 0.12
