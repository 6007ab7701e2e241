"""Label names, ids and class weights against independent definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from deltafit.data import Splits, class_weights, label_set, load_labelled, load_splits
from deltafit.data.labels import check_classes, label_name
from deltafit.errors import DeltafitError


def splits_of(folder: Path, labels: list[object], suffix: str = ".jsonl") -> Splits:
    path = folder / f"d{suffix}"
    if suffix == ".jsonl":
        lines = [json.dumps({"text": f"t {i}", "label": x}) for i, x in enumerate(labels)]
    else:
        lines = ["text,label", *(f"t {i},{x}" for i, x in enumerate(labels))]
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_splits(path, validation="none")


@given(st.lists(st.integers(-(10**17), 10**17), min_size=1, max_size=20))
def test_integers_are_sorted_as_numbers(values: list[int]) -> None:
    assert label_set(str(value) for value in values).names == tuple(map(str, sorted(set(values))))


@pytest.mark.slow
@given(st.lists(st.text(min_size=1), min_size=1, max_size=20))
def test_names_do_not_depend_on_the_order_of_rows(values: list[str]) -> None:
    names = label_set(values).names
    assert names == label_set(reversed(values)).names
    assert all(label_set(values).find(name) == index for index, name in enumerate(names))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([10, 9, 10, -1], ("-1", "9", "10"), (2, 1, 2, 0)),
        ([True, False, True], ("false", "true"), (1, 0, 1)),
        (["True", "FALSE", "true"], ("false", "true"), (1, 0, 1)),
        (["b", " a ", "b", "B"], ("B", "a", "b"), (2, 1, 2, 0)),
        (["007", "7", "7"], ("007", "7"), (0, 1, 1)),
    ],
)
def test_strings_ints_and_bools(
    tmp_path: Path, suffix: str, labels: list[object], names: tuple[str], ids: tuple[int]
) -> None:
    train = splits_of(tmp_path, labels, suffix).train
    assert train.label_names == names
    assert train.labels == ids


def test_the_same_label_in_any_notation_meets_the_same_class(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("text,label\nx,TRUE\ny,False\n", encoding="utf-8")
    assert load_labelled(path, ["false", "true"]).labels == (1, 0)
    path.write_text("text,label\nx,2\ny,10\n", encoding="utf-8")
    assert load_labelled(path, ["2", "10"]).labels == (0, 1)
    with pytest.raises(DeltafitError, match=r"row 2 \(line 3\), column 'label': the label '10'"):
        load_labelled(path, ["2", "3"])


def test_missing_cells() -> None:
    assert label_name(None) is label_name("  ") is label_name(float("nan")) is None
    # Words are words: a class may be called so.
    assert label_name("nan") == "nan"
    assert label_name("None") == "None"


def test_many_integer_classes_are_accepted_and_measurements_are_not() -> None:
    check_classes([str(i % 77) for i in range(400)], "d")  # ids of Banking77
    check_classes([str(1 + i % 77) for i in range(400)], "d")
    check_classes([f"intent {i % 77}" for i in range(400)], "d")
    check_classes(["1", "5", "80", "90"], "d")
    for names in (
        [str(i % 77 * 2) for i in range(400)],  # gaps
        [str(18 + i % 60) for i in range(400)],  # ages
        [str(i) for i in range(60)],  # row numbers
        ["0.5", "1.5", "1"],
        ["1e-3", "2e-3", "x"],
    ):
        with pytest.raises(DeltafitError, match=r"continuous|decimal"):
            check_classes(names, "d")


def test_columns_that_hold_no_classes_are_refused_in_small_tables_too() -> None:
    for names, kind in (
        ([str(1000 + 37 * i) for i in range(40)], "40 different labels in 40 rows.*numbers"),
        ([str(100 + 37 * (i % 45)) for i in range(90)], "45 different labels in 90 rows.*numbers"),
        ([f"comment number {i}" for i in range(30)], "30 different labels in 30 rows.*free text"),
        ([f"{i},{i * 7 % 10}" for i in range(30)], "continuous numbers such as 0,0 .30 different"),
        (["3,0", "4,0", "3,0"], r"decimal numbers such as 3,0.*\(3\)"),
    ):
        with pytest.raises(DeltafitError, match=kind):
            check_classes(names, "d")
    check_classes([str(5 * i) for i in range(9)], "d")  # few rows, few classes: an example
    check_classes([f"intent {i % 10}" for i in range(20)], "d")
    check_classes([str(i % 10) for i in range(20)], "d")  # ids of classes
    check_classes([str(10 * (i % 10)) for i in range(30)], "d")


@pytest.mark.parametrize(
    ("labels", "listed"),
    [
        (["pos", '"pos"', "neg", "pos"], "'\"pos\"' (rows: 1), 'pos' (rows: 2) differ only by"),
        (["pos", "'pos'", "neg"], "differ only by quotation marks. Write them alike."),
        (["True", "true", "maybe", "TRUE"], "'TRUE' (rows: 1), 'True' (rows: 1), 'true' (rows: 1)"),
        ([True, 1, False], "'1' (rows: 1), 'true' (rows: 1) are one truth value"),
        ([False, "0", "False", "no"], "'0' (rows: 1), 'False' (rows: 1), 'false' (rows: 1)"),
    ],
)
def test_one_class_in_two_notations_is_refused(
    tmp_path: Path, labels: list[object], listed: str
) -> None:
    with pytest.raises(DeltafitError) as caught:
        splits_of(tmp_path, labels)
    assert str(caught.value).startswith(f"{tmp_path / 'd.jsonl'}, column 'label': the labels ")
    assert listed in str(caught.value)


@settings(deadline=None)  # scikit-learn's first call is slow
@given(st.lists(st.integers(0, 4), min_size=1).map(lambda rows: [*rows, 0, 1, 2, 3, 4]))
def test_class_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    expected = compute_class_weight("balanced", classes=np.arange(5), y=np.array(labels))
    assert class_weights(labels, 5) == pytest.approx(expected)
    weights = class_weights(labels, 5)
    assert sum(weights[label] for label in labels) == pytest.approx(len(labels))


def test_class_weights_need_every_class() -> None:
    with pytest.raises(DeltafitError, match="class 1 has none"):
        class_weights([0, 2], 3)
