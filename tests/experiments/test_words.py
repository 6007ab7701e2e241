"""Lists and values as a person writes them."""

from typing import Any

import pytest

from deltafit.experiments.words import in_words, listing, named


def test_a_list_ends_in_and_and_a_long_one_is_counted_after_four() -> None:
    assert [listing(["a"]), listing(["a", "b"]), listing(list("abc"))] == [
        "a",
        "a and b",
        "a, b and c",
    ]
    assert named(list("abcd")) == "a, b, c and d"
    assert named(list("abcde")) == "a, b, c, d and 1 other"
    assert named(list("abcdef")) == "a, b, c, d and 2 others"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (5e-05, "5e-05"),
        (0.1, "0.1"),
        (16, "16"),
        (["ham", "spam"], "ham, spam"),
        ([], "none"),
        ({}, "none"),
        ({"a": None, "b": {"c": [1, 2]}}, {"a": "none", "b": {"c": "1, 2"}}),
    ],
)
def test_no_value_is_written_as_a_program_would(value: Any, words: Any) -> None:
    assert in_words(value) == words
