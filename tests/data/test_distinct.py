"""Rows that would be counted twice are left out where that is asked for, and none else."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from deltafit.data import LabelledTexts, load_splits
from deltafit.errors import DeltafitError

Rows = Sequence[tuple[str, str]]


def written(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


TRAIN = [("a one", "x"), ("b two", "y"), ("A  One", "x"), ("c three", "x"), ("d four", "y"),
         ("C THREE", "y"), ("e five", "y"), ("f six", "x"), ("g seven", "y")]  # fmt: skip
VALIDATION = [("E five ", "y"), ("h eight", "x"), ("i nine", "y"), ("i nine", "y")]
TEST = [("F  six", "x"), ("h EIGHT", "x"), ("j ten", "y"), ("j ten", "y")]


def test_only_what_would_be_counted_twice_goes(tmp_path: Path) -> None:
    train, validation, test = (
        written(tmp_path / f"{name}.csv", rows)
        for name, rows in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
    )
    splits = load_splits(train, validation=validation, test_data=test, drop_duplicates=True)
    assert splits.validation is not None and splits.test is not None
    # A copy of the first, a text with two labels, one of validation and one of the test.
    assert splits.train.texts == ("a one", "b two", "d four", "g seven")
    assert splits.train.rows == (1, 2, 5, 9), "and the others keep their places"
    assert [text.strip() for text in splits.validation.texts] == ["E five", "i nine", "i nine"]
    assert len(splits.test) == 4, "the rows that judge stay as they are"
    facts = splits.facts
    assert "5 training and 1 validation rows were left out as duplicates." in facts["notes"]
    assert facts["surplus_copies_in_training"] == facts["conflicting_texts_in_training"] == 0
    for overlaps in (facts["duplicates"], facts["duplicates_in_validation"]):
        assert all(each["apart_from_outer_whitespace"] == 0 for each in overlaps.values())
    whole = load_splits(train, validation=validation, test_data=test)
    assert len(whole.train) == len(TRAIN) and "left out" not in " ".join(whole.facts["notes"])


def parts_of(folder: Path, train: Rows, **words: object) -> LabelledTexts:
    data = written(folder / "train.csv", train)
    return load_splits(data, drop_duplicates=True, **words).train  # type: ignore[arg-type]


def test_nothing_goes_where_nothing_stands_twice(tmp_path: Path) -> None:
    rows = [(f"text {number}", "xy"[number % 2]) for number in range(20)]
    assert len(parts_of(tmp_path, rows, validation="none")) == 20
    assert len(parts_of(tmp_path, rows, validation="0.2")) == 16


def test_parts_of_the_same_rows_are_refused(tmp_path: Path) -> None:
    test = written(tmp_path / "test.csv", TRAIN)
    with pytest.raises(DeltafitError, match="nothing is left to train on"):
        parts_of(tmp_path, TRAIN, validation="none", test_data=test)
