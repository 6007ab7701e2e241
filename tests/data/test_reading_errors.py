"""Every fault of a data file is a sentence that says where it is."""

import re
from pathlib import Path
from typing import Any

import pytest

from deltafit.data import MalformedTableError, load_splits, load_texts
from deltafit.errors import DeltafitError, UsageError

GOOD = "text,label\n" + "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(40))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def failure(path: Path, **options: Any) -> str:
    with pytest.raises(DeltafitError) as caught:
        load_splits(path, **options)
    return str(caught.value)


# name of the file, its content, and what the message must hold, apart from the file's path
FAULTS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty text": (
        "d.csv",
        GOOD + "fine,a\n  ,b\nfine,a\n,b\n",
        [", row 42 (line 43), column 'text': the text is empty", "1 more (row 44)"],
    ),
    "missing label": (
        "d.csv",
        GOOD + "some words,\n",
        [", row 41 (line 42), column 'label': the label is missing"],
    ),
    "empty text after a quoted line break": (
        "d.csv",
        'text,label\n"two\nlines",a\n,b\n',
        [", row 2 (line 4), column 'text': the text is empty"],
    ),
    "one class only": (
        "d.csv",
        "text,label\none,a\ntwo,a\n",
        [", column 'label': all 2 rows have the label 'a'", "at least two classes"],
    ),
    "fractions as labels": (
        "d.csv",
        "text,label\n" + "".join(f"text {i},{i / 8}\n" for i in range(30)),
        [", column 'label': the labels are continuous numbers such as 0.", "30 different"],
    ),
    "whole decimals as labels": (
        "d.csv",
        "text,label\n" + "".join(f"text {i},{i % 2}.0\n" for i in range(30)),
        [", column 'label': the labels are decimal numbers", "without the decimal part"],
    ),
    "many numbers as labels": (
        "d.csv",
        "text,label\n" + "".join(f"text {i},{18 + i % 73}\n" for i in range(400)),
        [", column 'label': 73 different labels in 400 rows look like continuous numbers"],
    ),
    "free text as labels": (
        "d.csv",
        "text,label\n" + "".join(f"text {i},other {i}\n" for i in range(60)),
        [", column 'label': 60 different labels in 60 rows look like free text"],
    ),
    "a byte that is not UTF-8": (
        "d.csv",
        "text,label\nplän,a\ncaf".encode() + b"\xe9,b\n",
        [
            ", row 2 (line 3), column 'text': byte 22 (0xE9) is not UTF-8",
            "mixes the two",
        ],
    ),
    "a byte that is not UTF-8 behind a quoted line break": (
        "d.tsv",
        b'id\ttext\tlabel\n1\t"two\nlines\twide"\tb\n2\t"two\nli\tnes"\t\xe9\n\xc3\xa4',
        [", row 2 (line 5), column 'label': byte 50 (0xE9) is not UTF-8"],
    ),
    "a byte that is not UTF-8 where lines end at a carriage return": (
        "d.csv",
        b"\xef\xbb\xbftext,label\rone,a\rt\x8bwo,b\rthree,a\r",
        [", row 2 (line 3), column 'text': byte 21 (0x8B) is not UTF-8"],
    ),
    "a byte that is not UTF-8 in JSON Lines": (
        "d.jsonl",
        b'{"text":"x","label":1}\n{"text":"\xe9\x81","label":0}\n',
        [", row 2 (line 2), column 'text': byte 32 (0xE9) is not UTF-8"],
    ),
    "a byte that is not UTF-8 outside the values of JSON Lines": (
        "d.jsonl",
        b'{"text":"x","label":1}\n{"text":"x","lab\xe9l":0, "\x9d"}\n',
        [", row 2 (line 2): byte 39 (0xE9) is not UTF-8"],
    ),
    "a byte that is not UTF-8 in the header": (
        "d.csv",
        b"t\x81xt,label\nplain,a\n",
        [", header (line 1), column 1: byte 1 (0x81) is not UTF-8", "Latin-1"],
    ),
    "UTF-16": ("d.csv", GOOD.encode("utf-16"), [" is UTF-16 text (byte 0). Save it as UTF-8."]),
    "a packed file": ("d.csv", b"PK\x03\x04...", [" is a packed file"]),
    "empty file": ("d.csv", "", [" is empty."]),
    "only blank lines": ("d.csv", "\n\n", [" has no rows."]),
    "only a header": ("d.csv", "text,label\n", [" has a header but no rows."]),
    "only blank JSON lines": ("d.jsonl", "\n\n", [" has no rows."]),
    "a row too wide": (
        "d.csv",
        "text,label\nfine,a\nHello, you,b\n",
        [", row 2 (line 3): 3 cells where the first row has 2", "'label'", "holds a comma"],
    ),
    "a row too narrow": (
        "d.csv",
        "text,label\n\nfine,a\nHello\n",
        [", row 2 (line 4): 1 cells where the first row has 2; column 'label' is missing"],
    ),
    "a TSV row too wide": (
        "d.tsv",
        "text\tlabel\na\tb\tc\n",
        [", row 1 (line 2): 3 cells where the first row has 2", "holds a tab"],
    ),
    "a quote that is not closed": (
        "d.csv",
        'text,label\nfine,a\n"never,b\nmore,a\n',
        [", row 2 (line 3): unexpected end of data"],
    ),
    "a quote that is not doubled": (
        "d.csv",
        'text,label\n"he said "hi" there",a\n',
        [", row 1 (line 2): ',' expected after '\"'", 'he said ""hi""'],
    ),
    "duplicate header": (
        "d.csv",
        "text,label, text\na,b,c\n",
        [", header (line 1): the column 'text' stands there 2 times (columns 1, 3)"],
    ),
    "semicolons": (
        "d.csv",
        "text;label\na;b\n",
        [", header (line 1): the only column is 'text;label'", "semicolons"],
    ),
    "no such column by name": (
        "d.csv",
        "a,b,c\nx,y,z\n",
        [": no column is clearly the text column. The candidates are 'a', 'b', 'c'", "no header"],
    ),
    "two text columns": (
        "d.csv",
        "text,message,label\nx,y,z\n",
        [": the texts could be in any of the columns 'text', 'message'", "--text-column"],
    ),
    "two label columns": (
        "d.csv",
        "text,Intent,label\nx,y,z\n",
        [": the labels could be in any of the columns 'Intent', 'label'", "--label-column"],
    ),
    "a broken JSON line": (
        "d.jsonl",
        '{"text": "a", "label": 0}\n\n{"text": "b", "label"\n',
        [", row 2 (line 3), character 22: not valid JSON"],
    ),
    "a JSON array": ("d.json", '[{"text": "a"}]', [", row 1 (line 1): expected one JSON object"]),
    "a key twice": (
        "d.jsonl",
        '{"text": "a", "text": "b", "label": 0}\n',
        [", row 1 (line 1): the key 'text' stands there twice"],
    ),
    "a JSON text that is a number": (
        "d.jsonl",
        '{"text": "a", "label": 0}\n{"text": 3, "label": 1}\n',
        [", row 2 (line 2), column 'text': the text is not a string but a number"],
    ),
    "a JSON row without text": (
        "d.jsonl",
        '{"text": "a", "label": 0}\n{"label": 1}\n',
        [", row 2 (line 2), column 'text': the text is empty"],
    ),
    "a JSON label that is a list": (
        "d.jsonl",
        '{"text": "a", "label": 0}\n{"text": "b", "label": [1]}\n',
        [", row 2 (line 2), column 'label': the label is a list"],
    ),
    "a JSON label that is null": (
        "d.jsonl",
        '{"text": "a", "label": 0}\n{"text": "b", "label": null}\n',
        [", row 2 (line 2), column 'label': the label is missing"],
    ),
    "half of a character": (
        "d.jsonl",
        '{"text": "\\ud800", "label": 0}\n',
        [", row 1 (line 1), column 'text': the text holds half of a character"],
    ),
    "half of a character in a label": (
        "d.jsonl",
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "\\ud800"}\n',
        [", row 2 (line 2), column 'label': the label holds half of a character"],
    ),
    "unknown suffix": ("d.xlsx", "x", [": the suffix .xlsx is not known"]),
    "a label for every row": (
        "d.csv",
        "text,label\none,a\ntwo,b\nthree,c\n",
        [" cannot be cut: every row has a label of its own. Is this the label column?"],
    ),
    "too short to cut": (
        "d.csv",
        "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(10)),
        [" is too short to cut 10% off: 1 of 10 rows would have to hold 2 classes", "Cut 0.2"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_message_says_where(fault: str, tmp_path: Path) -> None:
    name, content, parts = FAULTS[fault]
    path = write(tmp_path, name, content)
    message = failure(path)
    assert message.startswith(str(path) + parts[0]), message
    for part in parts:
        assert part in message


def test_a_named_column_that_is_missing_lists_the_others_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", "Text,Label\nx,y\n")
    message = failure(path, label_column="label")
    assert message == (
        f"{path} has no column 'label' for the labels. Its columns are 'Text', 'Label'. "
        "Did you mean 'Label'?"
    )
    with pytest.raises(UsageError, match="name two columns"):
        load_splits(path, text_column="Text", label_column="Text")


def test_a_label_that_training_never_had(tmp_path: Path) -> None:
    data = write(tmp_path, "d.csv", GOOD)
    test = write(tmp_path, "t.csv", "text,label\nx,a\ny,C\nz,C\nw,A\n")
    message = failure(data, test_data=test)
    assert message.startswith(f"{test}, row 2 (line 3), column 'label': the label 'C' was never")
    assert "(and so were 'A')" in message
    assert "2 more (row 3, 4)" in message
    assert "2 classes: 'a', 'b'" in message
    assert failure(data, validation=test).startswith(f"{test}, row 2 (line 3), column 'label'")


def test_a_wrong_path_names_the_nearest_file_and_the_catalogue(tmp_path: Path) -> None:
    write(tmp_path, "reviews.csv", GOOD)
    message = failure(tmp_path / "review.csv")
    assert str(tmp_path / "reviews.csv") in message
    assert "imdb, rotten_tomatoes, sms_spam, banking77" in message
    with pytest.raises(DeltafitError, match="Did you mean 'rotten_tomatoes'"):
        load_splits("rotten-tomatoes")


def test_a_folder_without_training_part_or_with_two(tmp_path: Path) -> None:
    write(tmp_path, "tests.csv", GOOD)
    assert "no train.csv" in failure(tmp_path)
    assert "tests.csv" in failure(tmp_path)
    write(tmp_path, "train.csv", GOOD)
    write(tmp_path, "train.tsv", GOOD)
    assert "more than one train part: train.csv, train.tsv" in failure(tmp_path)


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "nan", "inf"])
def test_a_validation_fraction_out_of_range(value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"fraction is {value}")):
        load_splits(write(tmp_path, "d.csv", GOOD), validation=value)


def test_other_options_out_of_range(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", GOOD)
    with pytest.raises(UsageError, match="The seed is -1"):
        load_splits(path, seed=-1)
    with pytest.raises(UsageError, match="A limit of 1 rows cannot hold all 2 classes"):
        load_splits(path, limit=1)
    with pytest.raises(DeltafitError, match="There is no data at"):
        load_splits(path, validation=str(tmp_path / "absent.csv"))


def test_a_tsv_without_quoting_that_is_ragged_names_the_quotes_first(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", 'text\tlabel\n"open\ta\nb\n')
    with pytest.raises(MalformedTableError, match=r"row 1 \(line 2\): unexpected end of data"):
        load_splits(path)


def test_texts_to_predict_have_the_same_errors(tmp_path: Path) -> None:
    with pytest.raises(DeltafitError, match=r"row 2 \(line 3\), column 'text': the text is empty"):
        load_texts(write(tmp_path, "d.csv", 'text\nfine\n""\n'))
    with pytest.raises(DeltafitError, match=r"d.txt, line 2: byte 7 \(0xFF\) is not UTF-8"):
        load_texts(write(tmp_path, "d.txt", b"f\xc3\xafne\nx\xff\n"))
    with pytest.raises(DeltafitError, match="no text on any line"):
        load_texts(write(tmp_path, "d.txt", "\n \n"))
    with pytest.raises(UsageError, match="plain text without columns"):
        load_texts(write(tmp_path, "d.txt", "a\n"), text_column="text")
    with pytest.raises(DeltafitError, match="no column is clearly the text column"):
        load_texts(write(tmp_path, "d.csv", "a,b,c\nx,y,z\n"))
