import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafit.training import passes as cutting
from deltafit.training.passes import cut_passes, join_passes

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 40))
def test_every_row_is_in_just_one_pass_and_no_pass_is_too_large(lengths, largest):
    rows = list(range(len(lengths)))
    passes = cut_passes(rows, lengths, largest)
    assert sorted(row for part in passes for row in part) == rows
    assert max(map(len, passes)) <= largest


@given(LENGTHS, st.integers(1, 40))
def test_cutting_saves_tokens(lengths, largest):
    def padded(parts):
        return sum(len(part) * max(lengths[row] for row in part) for part in parts)

    rows = list(range(len(lengths)))
    ordered = sorted(rows, key=lambda row: -lengths[row])
    plain = [ordered[start : start + largest] for start in range(0, len(rows), largest)]
    assert padded(cut_passes(rows, lengths, largest)) <= padded(plain)


@given(LENGTHS, st.integers(1, 3000))
def test_packed_passes_are_filled_up_to_a_number_of_tokens(lengths, most):
    rows = list(range(len(lengths)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_MOST_PACKED_TOKENS", most)
        passes = cut_passes(rows, lengths, len(rows), packed=True)
    assert sorted(row for part in passes for row in part) == rows
    tokens = [sum(lengths[row] for row in part) for part in passes]
    assert all(count <= most or len(part) == 1 for part, count in zip(passes, tokens, strict=True))
    for count, behind in zip(tokens, passes[1:], strict=False):
        assert count + lengths[behind[0]] > most


def test_texts_of_one_length_stay_together():
    assert cut_passes([3, 1, 2, 0], [9, 9, 9, 9], 4) == [[3, 1, 2, 0]]


def test_one_long_text_goes_alone():
    assert cut_passes([0, 1, 2, 3], [10, 500, 10, 11], 4) == [[1], [3, 0, 2]]


PARTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 39), min_size=1, max_size=9)),
    min_size=1,
    max_size=8,
)


@given(st.lists(st.integers(1, 500), min_size=40, max_size=40), PARTS, st.booleans())
def test_joined_passes_hold_every_part_whole_and_keep_to_the_budget(lengths, parts, packed):
    joined = join_passes(parts, lengths, 4096, packed=packed)
    assert sorted(part for group in joined for part in group) == sorted(parts)
    for group in joined:
        own = [lengths[row] for _, rows in group for row in rows]
        tokens = sum(own) if packed else len(own) * max(own)
        assert tokens <= 4096 or len(group) == 1


def test_padded_parts_of_other_lengths_stay_apart_and_packed_they_go_together():
    parts = [("a", [0]), ("a", [2, 3]), ("b", [1]), ("b", [4, 5])]
    lengths = [100, 90, 10, 10, 9, 9]
    apart = [[("a", [0]), ("b", [1])], [("a", [2, 3]), ("b", [4, 5])]]
    assert join_passes(parts, lengths, 4096) == apart
    assert len(join_passes(parts, lengths, 4096, packed=True)) == 1
