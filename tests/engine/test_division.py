"""Parts of a batch by segment, against gathering row by row."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltafit.engine.division import Division, Divisions
from deltafit.engine.layout import CannotPackError, Layout, layout_of
from deltafit.errors import DeltafitError

counts_and_lengths = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=2)


def layout_for(lengths: list[int]) -> Layout:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    layout = layout_of(mask, causal=False)
    assert layout is not None
    return layout


def parts_of(division: Division, tensor: Tensor) -> Sequence[Tensor]:
    return division.cut(division.ordered(tensor))


def rows_of(parts: list[list[int]]) -> list[tuple[int, int]]:
    """The rows of each segment, from and to."""
    ends = [sum(map(len, parts[: end + 1])) for end in range(len(parts))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@given(counts_and_lengths)
def test_a_sheet_falls_to_segments_and_back(parts: list[list[int]]) -> None:
    lengths = [length for part in parts for length in part]
    layout = layout_for(lengths)
    divisions = Divisions(tuple(map(len, parts)))
    padded = torch.rand(len(lengths), max(lengths), 2, dtype=torch.float64)
    sheet = layout.pack(padded).requires_grad_()
    for tensor in (sheet, sheet[0]):
        division = divisions.of(tensor, layout)
        split = parts_of(division, tensor)
        for part, (start, stop) in zip(split, rows_of(parts), strict=True):
            tokens = [padded[row, : lengths[row]] for row in range(start, stop)]
            # Each segment has its rows' tokens, in whatever order.
            assert sorted(part.tolist()) == sorted(torch.cat(tokens).tolist())
        assert torch.equal(division.join(split), tensor)
    weights = torch.rand(sheet.shape, dtype=torch.float64)
    division = divisions.of(sheet, layout)
    joined = division.join([number * part for number, part in enumerate(parts_of(division, sheet))])
    (gradient,) = torch.autograd.grad((weights * joined).sum(), sheet)
    numbers = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([*map(len, parts)]))
    factors = layout.pack(numbers.double()[:, None, None].expand(-1, max(lengths), 1))
    assert torch.equal(gradient, weights * factors)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(1, 3))
def test_rows_fall_to_segments_and_back(counts: list[int], each: int) -> None:
    tensor = torch.arange(sum(counts) * each * 2.0).view(-1, 2)
    division = Divisions(tuple(counts)).of(tensor, None)
    parts = parts_of(division, tensor)
    assert [len(part) for part in parts] == [count * each for count in counts]
    assert torch.equal(torch.cat(list(parts)), tensor)
    assert torch.equal(division.join(parts), tensor)


def test_one_row_for_all() -> None:
    positions = torch.arange(3.0).view(1, 3)
    division = Divisions((2, 1)).of(positions, None)
    joined = division.join(
        [part + number for number, part in enumerate(parts_of(division, positions))]
    )
    assert joined.tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, 3]]


def test_fewer_labels_are_padded() -> None:
    division = Divisions((1, 2)).of(torch.zeros(3, 4), None)
    joined = division.join([torch.zeros(1, 3), torch.ones(2, 1)])
    assert joined[0].tolist() == [0, 0, 0]
    assert joined[1:].tolist() == [[1, -torch.inf, -torch.inf]] * 2


def test_the_permutation_is_made_once_and_only_where_needed() -> None:
    divisions = Divisions((1, 1))
    sorted_already, not_sorted = layout_for([1, 2]), layout_for([2, 1])
    sheet = torch.rand(1, 3, 2)
    split = parts_of(divisions.of(sheet, sorted_already), sheet)
    assert split[0].data_ptr() == sheet.data_ptr()  # a view of it
    orders = [divisions.of(sheet, not_sorted).order for _ in range(2)]  # type: ignore[attr-defined]  # a sheet's
    assert orders[0] is orders[1] and orders[0].tolist() == [1, 2, 0]


@pytest.mark.parametrize("shape", [(), (0, 2), (4, 2)])
def test_shapes_that_do_not_tell(shape: tuple[int, ...]) -> None:
    divisions = Divisions((1, 2))
    with pytest.raises(DeltafitError, match="not made of the 3 rows"):
        divisions.of(torch.zeros(shape), None)
    with pytest.raises(CannotPackError, match="not the 6 tokens"):
        divisions.of(torch.zeros(shape), layout_for([3, 2, 1]))


def test_outputs_without_the_rows() -> None:
    division = Divisions((1, 2)).of(torch.zeros(3, 4), None)
    parts: list[Tensor] = [torch.zeros(1), torch.zeros(1)]
    with pytest.raises(DeltafitError, match=r"shape \[1\] of 2 places"):
        division.join(parts)
