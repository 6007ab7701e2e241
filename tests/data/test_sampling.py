"""Cuts, balancing and subsamples, by the counts of every class."""

import math
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from deltafit.data import balanced_indices, stratified_cut, stratified_sample
from deltafit.errors import DeltafitError, UsageError

LABELS = st.lists(st.integers(0, 3), min_size=30, max_size=120)
SEEDS = st.integers(0, 2**32 - 1)


@given(labels=LABELS, fraction=st.floats(0.1, 0.5), seed=SEEDS)
def test_a_cut_is_that_of_scikit_learn(labels: list[int], fraction: float, seed: int) -> None:
    assume(min(Counter(labels).values()) > 3)
    assume(math.ceil(fraction * len(labels)) >= len(set(labels)))  # room for every class
    kept, cut, single = stratified_cut(labels, fraction, seed, "d.csv")
    rows = list(range(len(labels)))
    expected = train_test_split(rows, test_size=fraction, random_state=seed, stratify=labels)
    assert [kept, cut] == [sorted(part) for part in expected]
    assert single == []
    assert sorted(kept + cut) == rows
    for label, count in Counter(labels).items():
        share = Counter(labels[index] for index in cut)[label]
        assert abs(share - count * len(cut) / len(labels)) < 1


def test_a_class_with_one_row_stays_in_training() -> None:
    labels = [0] * 20 + [1] + [2] * 20 + [3]
    kept, cut, single = stratified_cut(labels, 0.1, 0, "d.csv")
    assert single == [1, 3]
    assert {20, 41} <= set(kept)
    assert {labels[index] for index in cut} == {0, 2}
    assert sorted(kept + cut) == list(range(42))


@given(labels=st.lists(st.integers(0, 9), min_size=2, max_size=60), fraction=st.floats(0.01, 0.99))
def test_a_cut_never_takes_a_class_away_from_training(labels: list[int], fraction: float) -> None:
    try:
        cut = stratified_cut(labels, fraction, 0, "d.csv")
    except DeltafitError as error:
        assert str(error).startswith("d.csv")
        return
    assert {labels[index] for index in cut.kept} == set(labels)
    assert cut.cut


@given(labels=st.lists(st.integers(0, 9), min_size=20, max_size=60), fraction=st.floats(0.01, 0.99))
def test_the_advised_fraction_works(labels: list[int], fraction: float) -> None:
    try:
        stratified_cut(labels, fraction, 0, "d.csv")
    except DeltafitError as error:
        if "Cut 0." in str(error):
            advised = float(str(error).split("Cut ")[1].split(" ")[0])
            try:
                assert stratified_cut(labels, advised, 0, "d.csv").cut
            except DeltafitError as second:
                # Large enough, but the shares leave a small class without a training row.
                assert "without a training row" in str(second)


@given(labels=LABELS, seed=SEEDS)
def test_balancing_keeps_the_smallest_class_whole(labels: list[int], seed: int) -> None:
    chosen = balanced_indices(labels, seed)
    counts = Counter(labels)
    smallest = min(counts.values())
    assert Counter(labels[index] for index in chosen) == dict.fromkeys(counts, smallest)
    assert chosen == sorted(set(chosen))
    assert chosen == balanced_indices(labels, seed)


@given(labels=LABELS, count=st.integers(4, 120), seed=SEEDS)
def test_a_subsample_keeps_shares_and_every_class(labels: list[int], count: int, seed: int) -> None:
    chosen = stratified_sample(labels, count, seed)
    assert len(chosen) == min(count, len(labels))
    assert chosen == sorted(set(chosen)) == stratified_sample(labels, count, seed)
    counts, taken = Counter(labels), Counter(labels[index] for index in chosen)
    assert set(taken) == set(counts)
    exact = {label: count * counts[label] / len(labels) for label in counts}
    if min(exact.values()) >= 1 and count < len(labels):
        assert all(abs(taken[label] - exact[label]) < 1 for label in counts)


def test_seeds_choose_different_rows_and_bad_ones_are_refused() -> None:
    labels = [0, 1] * 100
    assert stratified_sample(labels, 20, 0) != stratified_sample(labels, 20, 1)
    assert balanced_indices([0] * 90 + [1] * 9, 0) != balanced_indices([0] * 90 + [1] * 9, 1)
    with pytest.raises(UsageError, match="seed is 4294967296"):
        balanced_indices(labels, 2**32)


def test_the_stream_of_a_seed_is_fixed_for_good() -> None:
    """Rows chosen today are chosen in every later version, so that runs stay comparable."""
    assert stratified_sample([0, 1] * 10, 6, 0) == [3, 4, 7, 8, 11, 16]
