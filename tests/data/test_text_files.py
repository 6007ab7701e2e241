"""Text is read as what it is: packed or not, UTF-8 or Windows-1252, and never as a mixture."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafit.data import iterate_texts, load_labelled, load_splits
from deltafit.data.text_files import open_text
from deltafit.errors import DeltafitError

# What Windows-1252 can write; carriage returns and line ends would be lines of their own.
WINDOWS = st.text(
    st.characters(codec="cp1252", exclude_characters="\r\n", exclude_categories=["Cc"])
)
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))
ROWS = [("Café au lait", "gut"), ("naïve Übung", "bad"), ("plain", "gut"), ("“€5”", "bad")]


def as_bytes(name: str, encoding: str, rows: list[tuple[str, str]] = ROWS) -> bytes:
    if name.startswith("d.jsonl"):
        lines = [json.dumps({"text": t, "label": n}, ensure_ascii=False) for t, n in rows]
    else:
        mark = "\t" if ".tsv" in name else ","
        lines = [f"text{mark}label", *(f"{text}{mark}{name}" for text, name in rows)]
    content = ("\n".join(lines) + "\n").encode(encoding)
    return gzip.compress(content) if name.endswith(".gz") else content


@pytest.mark.parametrize(
    "name", ["d.csv", "d.tsv", "d.jsonl", "d.csv.gz", "d.tsv.gz", "d.jsonl.gz"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_a_table_is_the_same_packed_and_in_both_encodings(
    name: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(as_bytes(name, encoding))
    splits = load_splits(path, validation="none")
    assert splits.train.texts == tuple(text for text, _ in ROWS)
    said = [note for note in splits.facts["notes"] if "Windows-1252" in note]
    assert len(said) == (encoding == "cp1252")
    if said:
        assert str(path) in said[0] and "0xE9" in said[0] and "'é'" in said[0]
    part = load_labelled(path, ["bad", "gut"])
    assert part.texts == splits.train.texts and bool(part.notes) == bool(said)
    told: list[str] = []
    texts = [text for _, text in iterate_texts(path, text_column="text", note=told.append)]
    assert tuple(texts) == part.texts and tuple(told) == part.notes


@pytest.mark.parametrize("packed", [False, True])
def test_a_packed_part_of_a_folder_is_found(packed: bool, tmp_path: Path) -> None:
    for part in ("train", "test"):
        name = f"{part}.csv{'.gz' if packed else ''}"
        (tmp_path / name).write_bytes(as_bytes(name, "utf-8"))
    splits = load_splits(tmp_path, validation="none")
    assert splits.test is not None and splits.test.texts == splits.train.texts
    (tmp_path / "train.jsonl").write_bytes(as_bytes("d.jsonl", "utf-8"))
    with pytest.raises(DeltafitError, match="more than one train part"):
        load_splits(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "Où êtes-vous allés cet été, à Évian ou à Orléans ? Ça dépend des années passées là-bas.",
        "Größere Übungsräume für ältere Schüler wären schön.",
        "Þetta er ágætis mynd, þó að hún sé löng og óþægilega hæg á köflum.",
        "ÉÀÇ",
    ],
)
def test_languages_of_windows_1252_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(text.encode("cp1252"))
    assert [each for _, each in iterate_texts(path)] == [text]


@given(st.lists(WINDOWS, min_size=1))
def test_windows_1252_is_told_from_utf_8(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("text") / "d.txt"
    content = "\n".join(["x", *texts, ""]).encode("cp1252")
    path.write_bytes(content)
    file = open_text(path)
    try:
        expected = content.decode("utf-8")  # such as "Ã©", which nobody writes
        assert file.encoding == "utf-8"
    except UnicodeDecodeError:
        expected = content.decode("cp1252")
        if file.encoding == "utf-8":  # some of it is both, or of another alphabet
            with pytest.raises(DeltafitError, match="mixes the two"):
                list(file.plain_lines())
            return
    assert "".join(file.plain_lines()) == expected


@given(st.lists(ANY, min_size=1), st.booleans())
def test_utf_8_is_never_taken_for_something_else(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], packed: bool
) -> None:
    path = tmp_path_factory.mktemp("text") / "d.txt"
    content = "\n".join(["x", *texts]).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    file = open_text(path)
    assert (file.encoding, file.note) == ("utf-8", None)
    assert "".join(file.lines()) == content.decode()
    assert str(file) == str(path)


@pytest.mark.parametrize(
    "content",
    [
        b"caf\xe9\n" + "naïve\n".encode(),
        "naïve\n".encode() + b"caf\xe9\n",
        b"caf\xe9 na\xc3\xafve\n",
        b"na\xc3\xafve caf\xe9\n",
        b"caf\xe9 \x81\n",
        b"x\ncaf\xe2\x80",  # cut off within a character
        "Очень хороший фильм, смотреть всем\n".encode("cp1251"),
        "这部电影很好看我很喜欢它的演员\n".encode("gbk"),
    ],
)
def test_what_is_neither_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(content)
    with pytest.raises(DeltafitError, match=r"d\.txt, line \d: byte \d+ \(0x\w\w\) is not UTF-8"):
        list(iterate_texts(path))


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_packed_file_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "d.csv.gz"
    content = bytearray(
        as_bytes("d.csv.gz", "utf-8", [(f"text {i}", "ab"[i % 2]) for i in range(999)])
    )
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-6] ^= 255  # of the checksum
    for damaged in (content, content[:2], content[:2] + b"not gzip", content[:12] + b"\xff" * 9):
        path.write_bytes(damaged)
        with pytest.raises(DeltafitError, match=r"d\.csv\.gz cannot be unpacked: .* get it again"):
            load_splits(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DeltafitError, match="is empty"):
        load_splits(path)
