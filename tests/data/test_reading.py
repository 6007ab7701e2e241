"""What writers write is what is read: against csv, json and pandas."""

import csv
import json
import string
from pathlib import Path

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltafit.data import iterate_texts, load_splits, load_texts
from deltafit.data.columns import find_columns
from deltafit.data.tables import open_table

# Everything UTF-8 can hold; a NUL is refused by Python 3.10's csv module.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
TEXTS = st.text(CHARACTERS, min_size=1, max_size=30).filter(str.strip)
AWKWARD = st.text('",\t\r\n x;é\u2028\ufeff', min_size=1, max_size=12).filter(str.strip)
ROWS = st.lists(
    st.tuples(TEXTS | AWKWARD, st.sampled_from(["alpha", "beta", "gamma"])), min_size=4, max_size=20
)
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def plain(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop lone carriage returns: writers that end lines with \\n leave them unquoted.

    Python's csv and pandas both do, and the row then breaks in two for every reader.
    """
    kept = [(text.replace("\r", ""), label) for text, label in rows]
    return [(text or "x", label) for text, label in kept]


def without_spanning_tabs(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop tabs from texts with line breaks: unquoted, such lines may be rows of a TSV."""
    return [(text.replace("\t", " ") if set("\r\n") & set(text) else text, x) for text, x in rows]


def cells(path: Path) -> list[tuple[object, ...]]:
    return [tuple(row.cells) for row in open_table(path).read()]


@SETTINGS
@given(rows=ROWS, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), bom=st.booleans())
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_what_csv_writes_is_read(
    tmp_path: Path,
    suffix: str,
    delimiter: str,
    ending: str,
    rows: list[tuple[str, str]],
    quoting: int,
    bom: bool,
) -> None:
    if ending == "\n" and quoting == csv.QUOTE_MINIMAL:
        rows = plain(rows)
    if delimiter == "\t":
        rows = without_spanning_tabs(rows)
    path = tmp_path / f"d{suffix}"
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=ending)
        writer.writerows([("text", "label"), *rows])
    assert cells(path) == rows
    table = open_table(path)
    assert table.columns == ("text", "label")
    assert [row.number for row in table.read()] == list(range(1, len(rows) + 1))


@SETTINGS
@given(rows=ROWS)
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_what_pandas_writes_is_read(
    tmp_path: Path, suffix: str, delimiter: str, rows: list[tuple[str, str]]
) -> None:
    rows = without_spanning_tabs(plain(rows)) if delimiter == "\t" else plain(rows)
    path = tmp_path / f"d{suffix}"
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, sep=delimiter, index=False)
    assert cells(path) == rows


@SETTINGS
@given(rows=ROWS, ascii_only=st.booleans())
def test_json_lines_are_read(tmp_path: Path, rows: list[tuple[str, str]], ascii_only: bool) -> None:
    path = tmp_path / "d.jsonl"
    lines = [
        json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only) for text, label in rows
    ]
    path.write_bytes("\n".join(lines).encode())
    assert cells(path) == rows
    pandas.DataFrame(rows, columns=["text", "label"]).to_json(path, orient="records", lines=True)
    assert cells(path) == rows


@SETTINGS
@given(rows=ROWS)
def test_the_line_of_a_row_is_where_it_begins(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "d.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(("text", "label"))
        lines = []
        for row in rows:
            file.flush()
            written = path.read_bytes().decode()
            # A line ends at \n, \r\n or a lone \r, as the csv module has it.
            lines.append(written.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1)
            writer.writerow(row)
    assert [row.line for row in open_table(path).read()] == lines


def test_a_very_long_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"text,label\n{'x' * 500_000},a\n", encoding="utf-8")
    assert cells(path) == [("x" * 500_000, "a")]


def test_a_tsv_whose_quotes_do_not_pair_is_read_literally(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text('label\ttext\nham\t"Wen u miss" gdeve..\nspam\t"open\n', encoding="utf-8")
    assert cells(path) == [("ham", '"Wen u miss" gdeve..'), ("spam", '"open')]
    assert "read without quoting" in open_table(path).notes[0]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_file_without_header(tmp_path: Path, swap: bool, suffix: str, delimiter: str) -> None:
    rows = [("spam" if i % 4 == 0 else "ham", f"message number {i}") for i in range(40)]
    path = tmp_path / f"d{suffix}"
    path.write_text(
        "".join(delimiter.join(row[::-1] if swap else row) + "\n" for row in rows), encoding="utf-8"
    )
    splits = load_splits(path, validation="none")
    assert splits.train.texts == tuple(text for _, text in rows)
    assert splits.train.rows[:2] == (1, 2)
    assert splits.train.label_names == ("ham", "spam")
    assert any("has no header" in note for note in splits.facts["notes"])


def test_a_named_column_makes_the_first_row_a_header(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("spam,body\n" + "spam,x y\nham,z w\n" * 4, encoding="utf-8")
    splits = load_splits(path, text_column="body", label_column="spam", validation="none")
    assert len(splits.train) == 8


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("id,Review,Sentiment", "Review", "Sentiment"),
        ("query,INTENT", "query", "INTENT"),
        ("text,topic", "text", "topic"),
        ("topic,body", "body", "topic"),
        ("body,category", "body", "category"),
    ],
)
def test_columns_are_found(tmp_path: Path, header: str, text: str, label: str) -> None:
    path = tmp_path / "d.csv"
    order = header.split(",")
    lines = [header]
    for i in range(30):
        row = {text: f"words {i} and more", label: "xyz"[i % 3]}
        lines.append(",".join(row.get(name, str(i)) for name in order))
    path.write_text("\n".join(lines), encoding="utf-8")
    columns = find_columns(open_table(path))
    assert (columns.text, columns.label) == (text, label)


def test_an_index_column_is_not_taken_for_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    frame = pandas.DataFrame({"text": [f"words {i}" for i in range(20)], "label": [0, 1] * 10})
    frame.to_csv(path)
    splits = load_splits(path)
    assert splits.facts["columns"]["label"] == "label"
    frame[["text"]].to_csv(path)
    assert load_texts(path)[0] == tuple(frame["text"])


def test_texts_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("anything\nfirst\n\nsecond\n", encoding="utf-8")
    assert load_texts(path, text_column="anything") == (("first", "second"), (1, 2))
    path.write_text("Text\nfirst\n\nsecond\n", encoding="utf-8")
    assert load_texts(path) == (("first", "second"), (1, 2))
    path = tmp_path / "d.txt"
    path.write_bytes("\ufefffirst\r\n\n second\n".encode())
    assert load_texts(path) == (("first", " second"), (1, 3))
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n', encoding="utf-8")
    assert load_texts(path) == (("a", "b"), (1, 2))


def test_texts_stream(tmp_path: Path) -> None:
    """The rows before a fault are yielded: the file is not read whole first."""
    path = tmp_path / "d.csv"
    letters = list(string.ascii_letters)
    path.write_text("text\n" + "\n".join(letters * 40) + "\nnext,wide\n", encoding="utf-8")
    stream = iterate_texts(path)
    assert next(stream) == (1, "a")
    assert next(stream) == (2, "b")
