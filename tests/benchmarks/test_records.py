"""What the table of the speed benchmark says of pairs that are written down here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import records
import table
from deltafit.files import write_json_atomically
from works import (
    BF16,
    FLOAT32,
    GROUPED,
    LORALIB,
    OURS,
    PIPELINE,
    REDUCED,
    TRAINER,
    WITHOUT_DROPOUT,
    Work,
)

WORK = Work("minilm", "sms_spam", "lora:target_modules=query,value", 8, 128, 50, 6)
MACHINE = {
    "threads": 2,
    "processor": "Some CPU",
    "bf16_units": False,
    "versions": {"torch": "2.9"},
}


def run_of(seconds: float, **changed: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "tokens": 100,
        "losses": [5.0, 5.0, 4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0],
        "accuracy": 0.5,
        "precision": "float32",
        "memory_above_floor": 300,
        "roofline_seconds": None,
    } | changed


def pair_of(ours: float, rival: float, **sides: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": MACHINE,
        OURS: run_of(ours, roofline_seconds=ours / 4, memory_above_floor=150, accuracy=0.75),
        TRAINER: run_of(rival),
        **sides,
        "wall_seconds": 60.0,
    }


def test_ratios_are_taken_a_token_and_within_each_pair() -> None:
    pairs = [pair_of(1, 4), pair_of(2, 12), pair_of(3, 15)]
    pairs[1][TRAINER]["tokens"] = 200  # twice the work in the same time
    assert records.ratios(pairs, TRAINER) == pytest.approx([4, 3, 5])
    assert table.spread(records.ratios(pairs, TRAINER)) == "4.0× (3.0 to 5.0)"
    assert table.spread(records.ratios(pairs, LORALIB)) == "–"  # which did not run


def test_a_row_of_the_table() -> None:
    grouped = {GROUPED: run_of(3.0), FLOAT32: run_of(2.0)}
    pairs = {"a work": [pair_of(1, 4, **grouped), pair_of(1, 6, **grouped)]}
    works = {"a work": WORK, "never run": WORK}
    ((*cells,),) = table.rows_of(works, pairs)
    row = dict(zip(table.COLUMNS, cells, strict=True))
    assert row == {
        "work": "a work",
        "pairs": "2",
        "deltafit s": "1.0",
        "rival s": "5.0",
        "against the rival": "5.0× (4.0 to 6.0)",
        "bar": "6×",
        "in float32": "2.5× (2.0 to 3.0)",
        "predicting in bf16": "–",
        "without base dropout": "–",
        "against grouped": "3.0× (3.0 to 3.0)",
        "against bf16, grouped": "–",
        "against loralib": "–",
        "in turn": "–",
        "ahead s": "–",
        "memory": "0.50",
        "roofline": "25%",
        "precision": "float32 / float32",
        "last loss": "1.800 / 1.800",  # the mean of 3, 2, 2, 1, 1
        "accuracy": "0.750 / 0.500",
    }


def test_the_table_as_markdown_names_the_machine_and_what_was_left_out() -> None:
    pairs = {"a work": [pair_of(1, 4)]}
    rows, notes = table.rows_of({"a work": WORK}, pairs), table.notes_on(pairs)
    text = table.markdown(rows, notes, table.curves(pairs))
    head, align, row = (line.split("|") for line in text.splitlines()[:3])
    assert len(head) == len(align) == len(row) == len(table.COLUMNS) + 2
    assert "Machine: Some CPU, without bf16 units, 2 threads; torch 2.9." in notes
    assert table.WITHOUT_BF16 in notes
    five = "5.000 4.000 3.000 2.000 1.000"
    assert f"- a work: loss in fifths of the run: {OURS} {five}; {TRAINER} {five}" in text


def test_first_pairs_come_before_second_ones(tmp_path: Path) -> None:
    names = ["a, b", "c"]
    assert records.missing(tmp_path, names, 2) == [("a, b", 0), ("c", 0), ("a, b", 1), ("c", 1)]
    write_json_atomically(records.path_of(tmp_path, "a, b", 0), pair_of(1, 2))
    assert records.missing(tmp_path, names, 2) == [("c", 0), ("a, b", 1), ("c", 1)]
    assert records.read_pairs(tmp_path, "a, b") == [pair_of(1, 2)]


def test_what_was_not_run_is_expected_to_take_as_long_as_the_others(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    assert records.expected_seconds(tmp_path, names) == {}
    for name, pair, wall in (("a", 0, 10.0), ("a", 1, 20.0), ("a", 2, 90.0), ("b", 0, 60.0)):
        path = records.path_of(tmp_path, name, pair)
        write_json_atomically(path, pair_of(1, 2) | {"wall_seconds": wall})
    assert records.expected_seconds(tmp_path, names) == {"a": 20.0, "b": 60.0, "c": 40.0}


def test_who_takes_part_depends_on_the_machine_and_the_model() -> None:
    assert WORK.sides(bf16=False) == (OURS, TRAINER, GROUPED, WITHOUT_DROPOUT)
    assert WORK.sides(bf16=True) == (OURS, TRAINER, GROUPED, REDUCED, FLOAT32, WITHOUT_DROPOUT)
    full, predict = replace(WORK, method="full"), replace(WORK, method="predict")
    assert full.sides(bf16=True) == (OURS, TRAINER, GROUPED, REDUCED)
    assert predict.sides(bf16=False) == (OURS, PIPELINE)
    assert predict.sides(bf16=True) == (OURS, PIPELINE, BF16)
