"""CSV and TSV files that can be read in two ways: no row is lost or merged in silence."""

from pathlib import Path

import pytest

from deltafit.data import load_labelled, load_splits, load_texts
from deltafit.data.tables import open_table
from deltafit.errors import DeltafitError


def write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def cells(path: Path) -> list[list[str]]:
    return [list(row.cells) for row in open_table(path).read()]


MERGED = {
    "text last": ["label\ttext", 'ham\t"Hello there', 'spam\tWin now"', "ham\tok", "spam\tcall"],
    "text first": ["text\tlabel", '"Hello there\tham', "Win now\tspam", 'bye"\tham', "ok\tham"],
    "three columns": ["id\ttext\tlabel", '1\t"Hello\tham', '2\tWin now"\tspam', "3\tok\tham"],
    "whole rows": ["text\tlabel", '"Hello\tham', 'bye"\tspam', '"a\tham', 'b"\tspam', "c\tham"],
}


@pytest.mark.parametrize("case", MERGED)
def test_quotation_marks_merge_no_rows_of_a_tsv(tmp_path: Path, case: str) -> None:
    path = write(tmp_path, "d.tsv", *MERGED[case])
    assert cells(path) == [line.split("\t") for line in MERGED[case][1:]]
    splits = load_splits(path, validation="none")
    assert len(splits.train) == len(MERGED[case]) - 1
    assert splits.facts["notes"] == [
        f"{path}: read without quoting, since its quotation marks would put several rows into one."
    ]


def test_quoted_lines_of_a_tsv_are_one_cell(tmp_path: Path) -> None:
    path = write(
        tmp_path, "d.tsv", "text\tlabel", '"two\nlines"\ta', '"a\ttab\nand more"\tb', "c\ta"
    )
    assert cells(path) == [["two\nlines", "a"], ["a\ttab\nand more", "b"], ["c", "a"]]
    assert open_table(path).notes == ()


def test_spaces_before_quotes_make_no_second_class(tmp_path: Path) -> None:
    path = write(
        tmp_path, "d.csv", "text, label", 'a, "pos"', '"b","neg"', '"c, d", "pos"', "e,  neg"
    )
    splits = load_splits(path, validation="none")
    assert splits.train.label_names == ("neg", "pos")
    assert splits.train.texts == ("a", "b", "c, d", "e")
    assert splits.facts["notes"] == [
        f"{path}: read without the spaces after its commas, since they stand before quotes."
    ]
    # Only with them dropped is it a table.
    path = write(tmp_path, "d.csv", "label, text", 'pos, "a, b"', 'neg, "c"')
    assert cells(path) == [["pos", "a, b"], ["neg", "c"]]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # Spaces and marks that belong to a quoted cell.
        (['"he said, ""hi"""," a"', '" ""b""",c'], [['he said, "hi"', " a"], [' "b"', "c"]]),
        # Stray marks that would put two rows into one.
        (['pos, "a', 'neg,b"'], [["pos", ' "a'], ["neg", 'b"']]),
        # Marks around a part of the cell.
        (['pos, "a" b', "neg,c"], [["pos", ' "a" b'], ["neg", "c"]]),
    ],
)
def test_spaces_before_other_marks_are_kept(
    tmp_path: Path, lines: list[str], expected: list[list[str]]
) -> None:
    path = write(tmp_path, "d.csv", "one,two", *lines)
    assert cells(path) == expected
    assert open_table(path).notes == ()


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_the_first_line_of_one_column_is_never_dropped_in_silence(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name, "great film", "bad film", "ok film")
    with pytest.raises(DeltafitError) as caught:
        load_texts(path)
    assert str(caught.value).startswith(f"{path}, line 1: 'great film' may be the name of the only")
    assert "--text-column" in str(caught.value) and "add the line 'text'" in str(caught.value)
    assert load_texts(path, text_column="great film")[0] == ("bad film", "ok film")
    assert len(load_texts(write(tmp_path, name, "text", "great film", "bad film"))[0]) == 2


def test_the_key_of_json_lines_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, "d.jsonl", '{"said": "a"}', '{"said": "b"}')
    assert load_texts(path)[0] == ("a", "b")


def test_a_test_file_without_header_loses_no_row(tmp_path: Path) -> None:
    """Too few rows to see by themselves that the first one is data; the known classes tell."""
    train = write(tmp_path, "train.csv", "text,label", "a b,ham", "c d,spam", "e f,ham", "g,spam")
    test = write(tmp_path, "test.csv", "hello there,spam", "bye now,good", "so long,good")
    with pytest.raises(DeltafitError, match=r"test.csv, line 1: 'spam' is one of the classes"):
        load_splits(train, test_data=test, validation="none")
    named = write(tmp_path, "named.csv", "words,spam", "hello there,spam", "bye,ham", "so,ham")
    part = load_labelled(named, ("ham", "spam"), text_column="words", label_column="spam")
    assert len(part) == 3
