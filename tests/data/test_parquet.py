"""Parquet: pyarrow writes what is read, and what is wrong is said with its row."""

import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from pyarrow import parquet

from deltafit.data import iterate_texts, load_splits
from deltafit.errors import DeltafitError

TEXTS = [f"text {number}" for number in range(3000)]


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=700)
    return path


@pytest.mark.parametrize(
    "labels",
    [
        [number % 3 for number in range(3000)],
        ["abc"[number % 3] for number in range(3000)],
        [number % 2 == 0 for number in range(3000)],
        pyarrow.array(["abc"[number % 3] for number in range(3000)]).dictionary_encode(),
    ],
    ids=["whole numbers", "texts", "booleans", "a dictionary"],
)
def test_a_table_is_what_the_same_csv_is(labels: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", id=list(range(3000)), text=TEXTS, label=labels)
    frame = pandas.read_parquet(path)
    frame.to_csv(tmp_path / "d.csv", index=False)
    splits, expected = (load_splits(tmp_path / name) for name in ("d.parquet", "d.csv"))
    assert splits.train.texts == expected.train.texts
    assert splits.content_hashes() == expected.content_hashes()
    assert splits.train.lines is None
    assert splits.train.place(0) == f"{path}, row {splits.train.rows[0]}, column 'text'"
    assert [text for _, text in iterate_texts(path)] == TEXTS


def test_parts_of_a_folder_may_be_parquet(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", text=TEXTS[:10], label=list("ab") * 5)
    splits = load_splits(tmp_path, validation="none")
    assert splits.test is not None and splits.test.texts == tuple(TEXTS[:10])


def test_a_missing_text_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", text=["a", "b", None, "c"], label=list("xyxy"))
    with pytest.raises(DeltafitError, match=r"d.parquet, row 3, column 'text': the text is empty"):
        load_splits(path)


def test_what_is_no_parquet_or_empty_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "d.parquet", text=TEXTS, label=list("abc") * 1000).read_bytes()
    path = tmp_path / "e.parquet"
    for content in (b"text,label\na,b\n", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(DeltafitError, match=r"Could not read .*e\.parquet as Parquet"):
            load_splits(path)
    with pytest.raises(DeltafitError, match="has no rows"):
        load_splits(
            write(path, text=pyarrow.array([], "string"), label=pyarrow.array([], "string"))
        )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DeltafitError, match=r"pip install 'deltafit\[parquet\]'"):
        load_splits(path)
