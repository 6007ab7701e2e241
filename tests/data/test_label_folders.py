"""A folder of texts for each label is a table whose rows are files."""

import gzip
from pathlib import Path

import pytest

from deltafit.data import iterate_texts, load_labelled, load_splits
from deltafit.errors import DeltafitError
from deltafit.experiments.findings import quoted, rows_of


def write(folder: Path, *, count: int = 12, labels: tuple[str, ...] = ("neg", "pos")) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            text = f"{label} text {number}\nof two lines\n"
            (folder / label / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def test_labels_are_the_folders_and_texts_whole_files(tmp_path: Path) -> None:
    splits = load_splits(write(tmp_path / "reviews"), validation="none")
    assert splits.train.label_names == ("neg", "pos") and splits.test is None
    assert splits.train.texts[13] == "pos text 1\nof two lines" and splits.train.labels[13] == 1
    assert splits.train.place(13) == str(tmp_path / "reviews" / "pos" / "01.txt")
    part = splits.train.select([13, 2])
    assert part.place(1) == str(tmp_path / "reviews" / "neg" / "02.txt")


@pytest.mark.parametrize("validation", ["valid", "dev"])
def test_parts_are_folders_of_such(validation: str, tmp_path: Path) -> None:
    for name, count in (("train", 12), ("test", 3), (validation, 2)):
        write(tmp_path / name, count=count)
        (tmp_path / name / "urls.txt").write_text("http://...", encoding="utf-8")  # as of aclImdb
    (tmp_path / "README").write_text("Reviews", encoding="utf-8")
    splits = load_splits(tmp_path)
    assert {name: len(part) for name, part in splits.parts().items()} == {
        "train": 24, "validation": 4, "test": 6,
    }  # fmt: skip
    assert len(load_labelled(tmp_path, ["neg", "pos"])) == 6
    # A part may be given by its own folder.
    given = load_splits(tmp_path / "train", test_data=tmp_path / "test", validation="none")
    assert (
        given.test is not None and given.test.texts == load_splits(tmp_path).parts()["test"].texts
    )
    assert [text for _, text in iterate_texts(tmp_path / "test")] == list(given.test.texts)


def test_what_is_wrong_names_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    (folder / "pos" / "07.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DeltafitError, match=r"pos/07\.txt: the text is empty"):
        load_splits(folder)
    (folder / "pos" / "07.txt").write_bytes(b"caf\xe9 \x81")
    with pytest.raises(DeltafitError, match=r"pos/07\.txt, line 1: byte 3 \(0xE9\) is not UTF-8"):
        load_splits(folder)
    (folder / "pos" / "07.txt").write_bytes(b"")
    with pytest.raises(DeltafitError, match=r"pos/07\.txt is empty"):
        load_splits(folder)


def test_encodings_are_each_files_own_and_said_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    (folder / "pos" / "07.txt").write_bytes("Café".encode("cp1252"))
    splits = load_splits(folder, validation="none")
    assert "Café" in splits.train.texts
    assert sum("07.txt: read as Windows-1252" in note for note in splits.facts["notes"]) == 1
    (folder / "neg" / "03.txt.gz").write_bytes(gzip.compress("Übung\r\n".encode("cp1252")))
    splits = load_splits(folder, validation="none")
    assert {"Café", "Übung"} < set(splits.train.texts)
    (note,) = [note for note in splits.facts["notes"] if "Windows-1252" in note]
    assert "2 of 25 files" in note and "03.txt.gz" in note


def test_a_table_beside_such_a_folder_is_no_guess(tmp_path: Path) -> None:
    write(tmp_path / "train")
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n", encoding="utf-8")
    with pytest.raises(DeltafitError, match=r"more than one train part: train.csv, train\."):
        load_splits(tmp_path)


@pytest.mark.parametrize("labels", [(), ("pos",)])
def test_fewer_than_two_folders_of_texts_are_no_data(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "d", labels=labels) if labels else (tmp_path / "d").mkdir()
    with pytest.raises(DeltafitError, match=r"no two folders of \.txt files"):
        load_splits(tmp_path / "d")


@pytest.mark.parametrize("label", ["unsup", "Unlabeled", "test"])
def test_a_folder_that_is_no_label_is_refused(label: str, tmp_path: Path) -> None:
    write(tmp_path / "train", labels=("neg", "pos", label))
    with pytest.raises(DeltafitError, match=rf"{label} holds texts, and its name is of no label"):
        load_splits(tmp_path)


def test_flat_parts_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path, labels=("train", "test"))
    with pytest.raises(DeltafitError, match="test holds texts, and its name is of no label"):
        load_splits(tmp_path)


def test_files_that_would_be_passed_over_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    (folder / "pos" / "._01.txt").write_bytes(b"\0\5\x16\7")  # as macOS leaves behind
    assert len(load_splits(folder, validation="none").train) == 24
    (folder / "pos" / "51128").write_text("a text", encoding="utf-8")
    with pytest.raises(DeltafitError, match=r"pos holds 1 files that do not end in .txt.*51128"):
        load_splits(folder)
    (folder / "pos" / "51128").unlink()
    (folder / "pos" / "x.txt").mkdir()
    with pytest.raises(DeltafitError, match=r"such as 'x\.txt'"):
        load_splits(folder)


def test_doctors_and_refusals_name_files_and_no_row_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    part = load_splits(folder, validation="none").train
    assert quoted(part, 13) == "pos/01.txt: 'pos text 1 of two lines' is 'pos'"
    assert rows_of(part, [13, 2]) == f"pos/01.txt, neg/02.txt in {folder}"
    assert rows_of(part, list(range(12))).endswith(f"neg/09.txt and 2 more in {folder}")
    for number in (3, 4, 5):
        (folder / "pos" / f"0{number}.txt").write_text("  ", encoding="utf-8")
    with pytest.raises(
        DeltafitError,
        match=r"pos/03\.txt: the text is empty\. The same in 2 more \(pos/04\.txt, pos/05",
    ):
        load_splits(folder)
