"""What the doctor finds in texts and labels: what was planted, and else nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from deltafit.experiments.data_checks import (
    DATA_CHECKS,
    contradictions,
    copies,
    duplicates,
    imbalance,
    missing_classes,
    small_classes,
)
from deltafit.experiments.findings import listed
from tests.experiments.cases import case_of, healthy_rows, only
from tests.training.tiny_runs import LABELS


def test_healthy_texts_have_no_finding(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    assert [found for check in DATA_CHECKS for found in check(case)] == []


def test_duplicates_are_counted_and_listed_with_their_lines(tmp_path: Path) -> None:
    train, test = healthy_rows(240), healthy_rows(30, start=240)
    test[3] = train[4]
    test[7] = (train[8][0].upper().replace(" ", "  "), "good")
    found = only(list(duplicates(case_of(tmp_path, train=train, test=test, validation="none"))))
    assert found.severity == "warning"
    assert "1 of 30 test texts also stand in training (1 of them to the char" in found.sentence
    assert "1 more do but for case and spaces. Figures are given without them" in found.sentence
    assert found.remedy == "--set data.drop_duplicates=true (which takes them out of training)"
    assert [row.split(":")[0] for row in found.rows] == [
        "test.csv, row 4 (line 5)",
        "test.csv, row 8 (line 9)",
    ]


def test_what_is_alike_but_for_case_alone_is_found_too(tmp_path: Path) -> None:
    train, test = healthy_rows(240), healthy_rows(300, start=240)
    test[7] = (train[8][0].upper(), "good")
    found = only(list(duplicates(case_of(tmp_path, train=train, test=test, validation="none"))))
    assert found.severity == "note", "one of 300"
    assert found.sentence == ("1 of 300 test texts also stand in training but for case and spaces.")


def test_test_texts_where_the_checkpoint_is_chosen(tmp_path: Path) -> None:
    train, test = healthy_rows(240), healthy_rows(30, start=240)
    validation = case_of(tmp_path, train=train, test=test).splits.validation
    assert validation is not None
    test[0] = (validation.texts[0], validation.label_names[validation.labels[0]])
    found = only(list(duplicates(case_of(tmp_path, train=train, test=test))))
    assert "also stand in validation, where the checkpoint is chosen" in found.sentence


def test_one_text_with_two_labels_is_wrong_once(tmp_path: Path) -> None:
    train = healthy_rows(240)
    train[5] = (train[0][0] + " ", "mixed")
    train[6] = train[9] = (train[3][0], train[3][1])
    case = case_of(tmp_path, train=train, validation="none")
    found = only(list(contradictions(case)))
    assert found.severity == "warning" and "1 text with more than one label" in found.sentence
    assert len(found.rows) == 2 and "row 1 (line 2)" in found.rows[0]
    assert "'mixed'" in found.rows[1] and "row 6 (line 7)" in found.rows[1]
    assert "3 of 240 training rows (1.2%) are copies" in only(list(copies(case))).sentence


@pytest.mark.parametrize(("share", "severity"), [(3, "note"), (10, "warning")])
def test_uneven_classes(tmp_path: Path, share: int, severity: str) -> None:
    train = [*healthy_rows(90), *(row for row in healthy_rows(3000, start=300) if row[1] == "bad")]
    train = [row for row in train if row[1] != "bad"] + [row for row in train if row[1] == "bad"][
        : 30 * share
    ]
    case = case_of(tmp_path, train=train, validation="none")
    found = only(list(imbalance(case)))
    assert found.severity == severity
    assert f"has {30 * share} training rows, {share}.0 times" in found.sentence
    assert "The rarest: good (30), mixed (30)." in found.sentence
    assert "--set settings.class_weights=balanced" in found.remedy
    assert "--set data.balance=true" in found.remedy
    weighed = case_of(tmp_path, train=train, validation="none", class_weights="balanced")
    assert list(imbalance(weighed)) == []


def test_classes_of_few_rows_and_of_none(tmp_path: Path) -> None:
    train = [row for row in healthy_rows(240) if row[1] != "mixed"] + healthy_rows(300)[2:15:3]
    test = [row for row in healthy_rows(30, start=240) if row[1] == "good"]
    case = case_of(tmp_path, train=train, test=test, validation="none")
    few = only(list(small_classes(case)))
    assert "1 class with fewer than 10 rows" in few.sentence and few.rows == ("mixed: 5 rows",)
    absent = only(list(missing_classes(case)))
    assert absent.severity == "warning" and absent.rows == ("bad", "mixed")
    assert "test part has no row of 2 of 3 classes" in absent.sentence


def test_weights_of_a_class_without_rows_are_an_error(tmp_path: Path) -> None:
    for weights, severity in (("none", "warning"), ("balanced", "error")):
        case = case_of(tmp_path, validation="none", class_weights=weights)
        train = case.splits.train
        kept = [i for i, label in enumerate(train.labels) if train.label_names[label] != LABELS[0]]
        case = replace(case, splits=replace(case.splits, train=train.select(kept)))
        found = only(list(missing_classes(case)))
        assert found.severity == severity and found.rows == (LABELS[0],)


def test_long_lists_are_cut_and_say_so() -> None:
    assert listed(["a"] * 10) == ("a",) * 10
    assert listed(["a"] * 1210) == (*("a",) * 10, "and 1,200 more")
