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

WORK = Work("minilm", "sms_spam", "lora:target_modules=query,value", 8, 128, 50, 6, 10)
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
        "peak_memory": 700 * 10**6,
        "held_out": 60,
        "roofline_seconds": None,
    } | changed


def pair_of(ours: float, rival: float, **sides: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": MACHINE,
        "work": records.described(WORK),
        "code": "c0de",
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


def test_the_rows_of_the_tables() -> None:
    grouped = {GROUPED: run_of(3.0), FLOAT32: run_of(2.0)}
    pairs = {"a work": [pair_of(1, 4, **grouped), pair_of(1, 6, **grouped)]}
    pairs["a work"][1][OURS] |= {"roofline_seconds": 0.35, "precision": "bf16"}
    works = {"a work": WORK, "never run": WORK}
    (speed,), (beside,) = table.speeds(works, pairs), table.others(works, pairs)
    assert dict(zip(table.SPEED, speed, strict=True)) == {
        "work": "a work",
        "pairs": "2",
        "deltafit s": "1.0",
        "rival s": "5.0",
        "against the rival": "5.0× (4.0 to 6.0)",
        "bar": "6×",
        "stretch": "10×",
        "against grouped": "3.0× (3.0 to 3.0)",
        "against bf16, grouped": "–",
        "against loralib": "–",
        "in float32": "3.0×",  # of the pair whose run was not float32 by itself
        "in float32 against grouped": "1.5×",
        "predicting in bf16": "–",
        "without base dropout": "–",
        "in turn": "–",
    }
    assert dict(zip(table.BESIDE, beside, strict=True)) == {
        "work": "a work",
        "precision": "float32; bf16 / float32",  # what a noisy measurement decided otherwise shows
        "last loss": "1.800 / 1.800",  # the mean of 3, 2, 2, 1, 1
        "accuracy": "0.750 / 0.500",
        "held out": "60",
        "roofline": "30% (25% to 35%)",
        "were products free": "7.3× (5.3 to 9.2)",
        "ahead s": "–",
        "peak MB": "700 / 700",
        "memory above imports": "0.50",
    }


def test_one_pair_has_no_spread() -> None:
    assert table.spread([2.04]) == "2.0×"
    (cells,) = table.others({"a work": WORK}, {"a work": [pair_of(1, 4)]})
    assert cells[table.BESIDE.index("roofline")] == "25%"


def test_the_tables_as_markdown_name_the_machine_and_what_was_left_out() -> None:
    pairs = {"a work": [pair_of(1, 4)]}
    text = table.markdown({"a work": WORK}, pairs)
    lines = text.splitlines()
    for columns, part in ((table.SPEED, lines[:3]), (table.BESIDE, lines[4:7])):
        assert [len(line.split("|")) for line in part] == [len(columns) + 2] * 3
    assert "Machine: Some CPU, without bf16 units, 2 threads; torch 2.9." in lines
    assert table.WITHOUT_BF16 in lines
    assert "Code of deltafit, a digest of its sources: c0de." in lines
    five = "5.000 4.000 3.000 2.000 1.000"
    assert f"- a work: loss in fifths of the run: {OURS} {five}; {TRAINER} {five}" in text


def test_first_pairs_come_before_second_ones(tmp_path: Path) -> None:
    works = {"a, b": WORK, "c": WORK}
    all_of_them = [("a, b", 0), ("c", 0), ("a, b", 1), ("c", 1)]
    assert records.missing(tmp_path, works, 2, MACHINE) == all_of_them
    write_json_atomically(records.path_of(tmp_path, "a, b", 0), pair_of(1, 2))
    assert records.missing(tmp_path, works, 2, MACHINE) == all_of_them[1:]
    assert records.read_pairs(tmp_path, "a, b") == [pair_of(1, 2)]


@pytest.mark.parametrize(
    ("work", "facts", "said"),
    [
        (replace(WORK, steps=51), MACHINE, "measured with another work: .*'steps': 50"),
        (WORK, MACHINE | {"processor": "Another"}, "measured with another machine: .*Some CPU"),
    ],
)
def test_pairs_of_another_work_or_machine_are_not_added_to(
    tmp_path: Path, work: Work, facts: dict[str, Any], said: str
) -> None:
    write_json_atomically(records.path_of(tmp_path, "a", 0), pair_of(1, 2))
    with pytest.raises(SystemExit, match=f"a--0.json was {said}.* Delete it, or keep the new"):
        records.missing(tmp_path, {"b": work, "a": work}, 2, facts)


def test_the_code_that_was_measured_has_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "deltafit"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(records.deltafit, "__file__", str(package / "__init__.py"))
    seen = [records.digest_of_code()]
    for name, text in (("engine/a.py", "1"), ("engine/a.py", "2"), ("engine/b.py", "")):
        (package / name).write_text(text)
        seen.append(records.digest_of_code())
    assert len({*seen}) == 4 and all(len(each) == 12 for each in seen)
    (package / "engine" / "c.txt").write_text("no code")
    assert records.digest_of_code() == seen[-1]


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
    predict = replace(WORK, method="predict")
    for method in ("full", "last-block", "head"):
        sides = replace(WORK, method=method).sides(bf16=True)
        assert sides == (OURS, TRAINER, GROUPED, REDUCED)
    assert predict.sides(bf16=False) == (OURS, PIPELINE)
    assert predict.sides(bf16=True) == (OURS, PIPELINE, BF16)
