"""The parts of a data set: given or cut, and what the facts say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.model_selection import train_test_split

from deltafit.data import (
    LabelledTexts,
    check_path,
    check_paths,
    duplicates_between,
    load_labelled,
    load_splits,
)
from deltafit.errors import DeltafitError, UsageError


def rows(count: int, start: int = 0, classes: str = "ab") -> list[tuple[str, str]]:
    return [(f"text {i}", classes[i % len(classes)]) for i in range(start, start + count)]


def write(path: Path, content: list[tuple[str, str]], header: str = "text,label") -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [header, *(f'"{text}",{label}' for text, label in content)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def texts(*values: str) -> LabelledTexts:
    numbers = tuple(range(1, len(values) + 1))
    return LabelledTexts(values, (0,) * len(values), ("a",), "d", numbers, None, "text")


def test_ten_per_cent_by_default_and_none_trains_on_all(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", rows(100))
    splits = load_splits(path, seed=3)
    labels = [i % 2 for i in range(100)]
    kept, cut = train_test_split(range(100), test_size=0.1, random_state=3, stratify=labels)
    assert splits.validation is not None
    assert splits.train.rows == tuple(index + 1 for index in sorted(kept))
    assert splits.validation.rows == tuple(index + 1 for index in sorted(cut))
    assert splits.train.texts == tuple(f"text {index}" for index in sorted(kept))
    assert splits.test is None
    assert splits.facts["test"] == "none given"
    assert load_splits(path, seed=3) == splits
    assert load_splits(path, seed=4).validation != splits.validation
    whole = load_splits(path, validation="none")
    assert whole.validation is None
    assert len(whole.train) == 100


def test_given_parts_keep_their_own_rows_and_the_classes_of_training(tmp_path: Path) -> None:
    data = write(tmp_path / "d.csv", rows(20, classes="cab"))
    valid = write(tmp_path / "v.csv", [("v", "b"), ("w", "c")])
    test = write(tmp_path / "t.csv", [("t", "c")], header="review,intent")
    splits = load_splits(data, validation=str(valid), test_data=test)
    assert splits.train.label_names == ("a", "b", "c")
    assert splits.validation is not None
    assert splits.test is not None
    assert splits.validation.labels == (1, 2)
    assert splits.test.labels == (2,)
    assert len(splits.train) == 20
    assert any("'review'" in note for note in splits.facts["notes"])


@pytest.mark.parametrize("name", ["val.csv", "validation.csv", "valid.tsv", "dev.jsonl"])
def test_a_folder_gives_its_parts(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.csv", rows(20))
    write(tmp_path / "test.csv", rows(3, 50))
    path = tmp_path / name
    if name.endswith(".jsonl"):
        path.write_text('{"text": "v", "label": "a"}', encoding="utf-8")
    else:
        mark = "," if name.endswith(".csv") else "\t"
        path.write_text(f"text{mark}label\nv{mark}a\n", encoding="utf-8")
    splits = load_splits(tmp_path)
    assert splits.facts["counts"] == {"train": 20, "validation": 1, "test": 3}
    assert load_splits(tmp_path, validation="none").validation is None
    assert load_splits(tmp_path, test_data=path).facts["counts"]["test"] == 1
    assert load_labelled(tmp_path, ["a", "b"]).rows == (1, 2, 3)
    path.unlink()
    with pytest.raises(DeltafitError, match="has no validation part"):
        load_splits(tmp_path, validation=str(tmp_path))


def test_balance_and_limit_touch_training_rows_only(tmp_path: Path) -> None:
    data = write(tmp_path / "d.csv", rows(90, classes="aab"))
    test = write(tmp_path / "t.csv", rows(30, 200, classes="aab"))
    splits = load_splits(data, test_data=test, balance=True, limit=40, validation="0.1")
    assert splits.facts["class_counts"] == {
        "train": {"a": 18, "b": 18},
        "validation": {"a": 2, "b": 2},
        "test": {"a": 20, "b": 10},
    }
    assert "60" in splits.facts["train"]
    natural = load_splits(data, limit=30, validation="none")
    assert natural.facts["class_counts"]["train"] == {"a": 20, "b": 10}


def test_a_class_with_a_single_row_is_reported(tmp_path: Path) -> None:
    splits = load_splits(write(tmp_path / "d.csv", [*rows(40), ("rare", "z")]))
    assert splits.facts["single_row_classes"] == ["z"]
    assert "rare" in splits.train.texts
    assert any("single training row" in note for note in splits.facts["notes"])


def test_duplicates_across_parts_are_counted(tmp_path: Path) -> None:
    train = texts("a b", " c", "d")
    other = texts("d", "x", "c", "a b\n", "A b")
    assert duplicates_between(train, other) == (0, 2, 3)
    assert duplicates_between(train, other, alike="verbatim") == (0,)
    data = write(tmp_path / "d.csv", [*rows(10), ("text 0 ", "b"), ("text 1", "b")])
    test = write(tmp_path / "t.csv", [("text 0", "a"), (" text 1", "b"), ("new", "a")])
    facts = load_splits(data, test_data=test, validation="none").facts
    assert facts["duplicates"] == {
        "test": {"verbatim": 1, "apart_from_outer_whitespace": 2, "with_another_label": 1}
    }
    assert facts["duplicates_in_validation"] == {}
    assert facts["surplus_copies_in_training"] == 2
    assert facts["conflicting_texts_in_training"] == 1


def test_duplicates_of_validation_and_contradictions_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("same", "x"), ("b", "y"), ("both", "x"), ("both", "y")])
    write(tmp_path / "val.csv", [("q", "x"), ("r ", "y"), ("same", "x")])
    write(tmp_path / "test.csv", [("q", "y"), ("r", "y"), ("both", "x"), ("new", "y")])
    splits = load_splits(tmp_path)
    assert splits.facts["duplicates"] == {
        "validation": {"verbatim": 1, "apart_from_outer_whitespace": 1, "with_another_label": 0},
        "test": {"verbatim": 1, "apart_from_outer_whitespace": 1, "with_another_label": 1},
    }
    assert splits.facts["duplicates_in_validation"] == {
        "test": {"verbatim": 1, "apart_from_outer_whitespace": 2, "with_another_label": 1}
    }
    assert splits.facts["notes"][-4:] == [
        "1 of 3 validation texts also stand in training (1 of them to the character).",
        "1 of 4 test texts also stand in training (1 of them to the character; 1 with another "
        "label).",
        "2 of 4 test texts also stand in validation, where the checkpoint is chosen (1 of them to "
        "the character; 1 with another label).",
        "1 training texts stand there with more than one label.",
    ]
    assert splits.duplicates("test") == (2,)  # of training alone


def test_a_fraction_that_is_not_cut_is_said(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(20))
    own = write(tmp_path / "dev.csv", rows(4, 50))
    for fraction in ("0.5", "0.1"):
        splits = load_splits(tmp_path, validation=fraction)
        assert splits.facts["counts"] == {"train": 20, "validation": 4}
        said = f"the data's own part: {own}; no fraction ({fraction}) is cut off training."
        assert splits.facts["notes"] == [f"Validation is {said}"]
    assert load_splits(tmp_path, validation=str(own)).facts["notes"] == []


def test_parts_by_name_and_their_duplicates(tmp_path: Path) -> None:
    data = write(tmp_path / "d.csv", rows(40))
    test = write(tmp_path / "t.csv", [("new", "a"), ("text 3 ", "b")])
    splits = load_splits(data, test_data=test, validation="none")
    assert list(splits.parts()) == ["train", "test"]
    assert splits.duplicates("test") == (1,)
    assert splits.duplicates("train") == ()
    assert list(load_splits(data).parts()) == ["train", "validation"]


def test_facts_are_json(tmp_path: Path) -> None:
    data = write(tmp_path / "d.csv", rows(100))
    facts = load_splits(data, test_data=write(tmp_path / "t.csv", rows(5))).facts
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["columns"]["text"] == "text"
    assert facts["label_names"] == ["a", "b"]
    assert facts["duplicates"]["test"]["verbatim"] in range(6)


def test_the_hash_follows_content_and_not_the_file(tmp_path: Path) -> None:
    csv_rows = load_splits(write(tmp_path / "d.csv", rows(9)), validation="none").train
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"label": label, "text": text}) for text, label in rows(9)]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    json_rows = load_splits(path, validation="none").train
    assert csv_rows.content_hash() == json_rows.content_hash()
    assert csv_rows.select(range(8)).content_hash() != csv_rows.content_hash()
    assert csv_rows.select([1, 0]).content_hash() != csv_rows.select([0, 1]).content_hash()
    assert texts("a\r\nb").content_hash() == texts("a\nb").content_hash()
    assert texts("ab", "c").content_hash() != texts("a", "bc").content_hash()
    relabelled = LabelledTexts(("x",), (1,), ("a", "b"), "d", (1,), None, "text")
    assert relabelled.content_hash() != replace(relabelled, labels=(0,)).content_hash()
    # Fixed for good: adapters carry it.
    assert texts("é").content_hash() == (
        "21eb36910befcac15314f1aafd3ed5de5b2f2e0ddfbb508461cafa5041720eea"
    )


def test_the_place_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('label,said\na,"two\nlines"\nb,x\nb,y\n', encoding="utf-8")
    train = load_splits(path, text_column="said", validation="none").train
    assert train.place(2) == f"{path}, row 3 (line 5), column 'said'"
    assert train.select([1, 0]).place(0) == f"{path}, row 2 (line 4), column 'said'"
    assert texts("a").place(0) == "d, row 1, column 'text'"  # the hub's rows have no lines


def test_select_keeps_row_numbers() -> None:
    part = texts("a", "b", "c").select([2, 0])
    assert (part.texts, part.rows, len(part)) == (("c", "a"), (3, 1), 2)


@pytest.mark.parametrize("validation", ["abc", "0,1", "10%", "nan", "inf", "0", "1", "-0.1"])
def test_a_validation_part_that_is_no_fraction_and_no_file_is_wrong_usage(
    tmp_path: Path, validation: str
) -> None:
    path = str(write(tmp_path / "d.csv", rows(20)))
    for load in (
        lambda: load_splits(path, validation=validation),
        lambda: check_paths(path, None, validation),
    ):
        with pytest.raises(UsageError, match=f"validation fraction is {validation}"):
            load()


def test_paths_are_checked_and_nothing_is_read(tmp_path: Path) -> None:
    binary = tmp_path / "d.csv"
    binary.write_bytes(b"\xff\x00")  # no table at all
    good, gone = str(binary), str(tmp_path / "e.csv")
    check_paths(good, good, good)
    check_paths("banking77", None, "none")  # it may be on the hub
    for paths in ((gone, None, "0.1"), (good, gone, "0.1"), (good, None, gone)):
        with pytest.raises(DeltafitError, match=r"There is no data at .*e\.csv"):
            check_paths(*paths)
    with pytest.raises(DeltafitError, match="There is no data"):
        check_path(gone)
