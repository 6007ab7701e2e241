"""Cutting rows into groups for attention: the cheapest cut of all, and there and back."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltafit.engine import groups
from deltafit.engine.groups import Group, cut_groups

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=8).map(sorted)


def cost(sizes: list[int], cuts: list[tuple[int, int]], group: int) -> int:
    return sum(group + (stop - start) * sizes[stop - 1] ** 2 for start, stop in cuts)


@given(sizes=SIZES, price=st.integers(0, 300))
def test_no_other_cut_costs_less(sizes: list[int], price: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_COST_OF_A_GROUP", price)
        found = cut_groups(sizes)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(len(sizes)))
    places = range(1, len(sizes))
    every = (
        list(zip((0, *chosen), (*chosen, len(sizes)), strict=True))
        for count in range(len(sizes))
        for chosen in combinations(places, count)
    )
    assert cost(sizes, found, price) == min(cost(sizes, cuts, price) for cuts in every)


@given(sizes=SIZES, most=st.integers(1, 400))
def test_no_group_of_several_rows_is_too_large(sizes: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_COST_OF_A_GROUP", 300)
        whole = cut_groups(sizes)
        found = cut_groups(sizes, most)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(len(sizes)))
    for start, stop in found:
        assert stop - start == 1 or (stop - start) * sizes[stop - 1] ** 2 <= most
    assert {start for start, _ in whole} <= {start for start, _ in found}


@given(sizes=SIZES)
def test_there_and_back(sizes: list[int]) -> None:
    group = Group(tuple(sizes), causal=False, mask=None)
    tokens = torch.arange(1.0, sum(sizes) + 1).unsqueeze(1)
    padded = group.padded(tokens)
    assert padded.shape == (len(sizes), sizes[-1], 1)
    for row, part in zip(padded, tokens.split(sizes), strict=True):
        assert torch.equal(row[: len(part)], part)
    assert torch.equal(group.unpadded(padded), tokens)
    assert group.real.sum(1).tolist() == sizes


def test_texts_of_like_length_stand_together() -> None:
    assert cut_groups([20, 22, 23, 25, 30, 31]) == [(0, 6)]
    assert cut_groups([8, 10, 120, 128]) == [(0, 2), (2, 4)]
    assert cut_groups([7]) == [(0, 1)]
