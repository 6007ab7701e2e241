"""Rows know their intervals, their rows, and how they stand against the best cheap baseline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from deltafit.data import LabelledTexts, Splits
from deltafit.experiments.class_sections import reference_of
from deltafit.experiments.report import comparison_table, verdict, write_report
from deltafit.experiments.rows import Candidate, Failure, candidate_of, compared, failed_row
from deltafit.experiments.statistics import mean_accuracy_interval
from deltafit.experiments.summary import summary
from deltafit.experiments.together import Together
from deltafit.experiments.verdict import advised
from deltafit.files import read_json, write_tensors_atomically
from deltafit.methods import Head
from deltafit.tasks.metrics import accuracy_interval, classification_metrics
from deltafit.training.results import PREDICTIONS_FILE
from tests.experiments.rows import row, run

ROWS = 1600
FROZEN = "frozen features + logistic regression"
ACCURACIES = {"majority": 0.5, FROZEN: 0.752, "lora": 0.745, "head": 0.6, "full": 0.9}


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    generator = np.random.default_rng(0)
    found = []
    for name, accuracy in ACCURACIES.items():
        correct = generator.permutation(np.arange(ROWS) < accuracy * ROWS)[None]
        make = run if name in ("lora", "head", "full") else _baseline
        found.append(Candidate(make(name, float(correct.mean()), None), correct))
    return found


def _baseline(name: str, after: float, compared: None) -> dict[str, object]:
    return row(name, "baseline", after, compared)


def test_each_run_is_compared_with_the_best_cheap_baseline(candidates: list[Candidate]) -> None:
    rows = {str(each["name"]): each for each in compared(candidates)}
    places = {str(each.row["name"]): place for place, each in enumerate(candidates)}
    together = Together([each.correct for each in candidates])
    for name in ("lora", "head", "full"):
        expected = together.compare(places[name], places[FROZEN])
        assert rows[name]["against_baseline"] == {"name": FROZEN, **vars(expected)}
    assert rows["majority"]["against_baseline"] is rows[FROZEN]["against_baseline"] is None
    assert rows["lora"]["notes"] == [f"no better than {FROZEN} beyond noise"]
    assert rows["head"]["notes"] == [f"worse than {FROZEN} beyond noise"]
    assert not any(rows[name]["notes"] for name in ("majority", FROZEN, "full"))


def test_the_notes_stand_in_terminal_markdown_and_json(
    candidates: list[Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    rows = compared(candidates)
    write_report(tmp_path, rows, {}, {}, {}, {})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison_table(rows, 200))
    stored = read_json(tmp_path / "comparison.json")
    for each in rows:
        for note in each["notes"]:
            assert f"{each['name']}: {note}" in capture.get()
            assert f"- {each['name']}: {note}" in (tmp_path / "report.md").read_text()
    assert stored["rows"] == rows and sum(len(each["notes"]) for each in rows) == 2
    cheap = f"the best cheap baseline, {FROZEN}, beyond noise (+14.8 [+"
    assert f"full beats {cheap}" in verdict(rows)


def test_what_is_worse_alone_and_not_among_many_is_undecided_and_not_shipped() -> None:
    """Alone one method is worse than the best beyond noise; among twenty such it is undecided."""
    right = np.arange(1000) < 900
    worse = right.copy()
    worse[:22], worse[990:998] = False, True
    best = Candidate(run("best", 0.9, None), right[None])
    others = [Candidate(run(f"other {i}", 0.886, None), worse[None]) for i in range(20)]
    (_, alone), (_, *among) = compared([best, others[0]]), compared([best, *others])
    assert alone["difference"]["beyond_noise"]
    for each in (alone, *among):
        assert not each["difference"]["within_noise"]
    assert not any(each["difference"]["beyond_noise"] for each in among)
    for key in ("low", "high", "p_value"):
        assert among[0]["difference"][key] == pytest.approx(alone["difference"][key], abs=3e-3)
    rows = compared([best, *others])
    assert advised(rows) is rows[0] and "is better than every" not in verdict(rows)
    undecided = "20 undecided: worse looked at alone, not after correction for all pairs (other 0,"
    assert undecided in summary(rows)[0]


def test_of_several_full_fine_tunings_the_best_on_validation_is_the_reference() -> None:
    """A row that learned nothing must not be what others are better than."""
    generator = np.random.default_rng(3)
    made = []
    for name, accuracy, validation in (
        *(("full 1e-7", 0.5, 0.52), ("full 2e-5", 0.9, 0.91), ("full 1e-4", 0.92, 0.9)),
        ("lora", 0.9, 0.95),
    ):
        correct = generator.permutation(np.arange(800) < accuracy * 800)[None]
        full: dict[str, Any] = {"result_name": "all", "trainable": 22_742_861, "saved_bytes": 10**8}
        known = full if name.startswith("full") else {}
        each = run(name, float(correct.mean()), None, **known, validation=validation)
        made.append(Candidate(each, correct))
    rows = {str(each["name"]): each for each in compared(made)}
    # "full 1e-4" does better on the judged rows, which have no part in the choice.
    assert {row["against_full"]["name"] for row in rows.values() if row["against_full"]} == {
        "full 2e-5"
    }
    assert rows["full 2e-5"]["against_full"] is None
    said = " ".join(summary([*rows.values()]))
    assert "full 2e-5 stands for full fine-tuning: it does best on the validation rows." in said
    assert "full 1e-7 (−40.0" in said and "is worse than full 2e-5 (full fine-tuning)" in said
    assert "lora is within noise of full 2e-5 (full fine-tuning)" in said
    assert reference_of([*rows.values()]) is rows["full 2e-5"]  # the classes' too


def test_without_validation_rows_the_reference_is_the_best_there_is_and_says_so() -> None:
    correct = {name: np.arange(500)[None] < right for name, right in
               {"full 1e-7": 200, "full 2e-5": 450, "lora": 440}.items()}  # fmt: skip
    made = [
        Candidate(
            run(
                *(name, float(right.mean()), None),
                result_name="all" if name.startswith("full") else "lora",
                validation=None,
            ),
            right,
        )
        for name, right in correct.items()
    ]
    rows = compared(made)
    assert rows[2]["against_full"]["name"] == "full 2e-5"
    assert "there are no validation rows to choose by" in " ".join(summary(rows))


def test_runs_are_compared_with_full_fine_tuning_and_with_what_is_advised() -> None:
    generator = np.random.default_rng(2)
    made = []
    for name, accuracy in {"head": 0.6, "lora": 0.89, "dora": 0.88, "full": 0.9}.items():
        correct = generator.permutation(np.arange(800) < accuracy * 800)[None]
        known = {"result_name": "all"} if name == "full" else {"trainable": 1000 + len(made)}
        made.append(Candidate(run(name, float(correct.mean()), None, **known), correct))
    rows = {str(each["name"]): each for each in compared(made)}
    together = Together([each.correct for each in made])
    places = {str(each.row["name"]): place for place, each in enumerate(made)}
    chosen = advised(list(rows.values()))
    assert chosen is rows["lora"] and verdict(list(rows.values())).startswith("Ship lora")
    for key, other in (("against_full", "full"), ("against_advised", "lora")):
        assert rows[other][key] is None
        for name in {*rows} - {other}:
            expected = together.compare(places[name], places[other])
            assert rows[name][key] == {"name": other, **vars(expected)}


def test_without_baselines_nothing_is_said_of_them(candidates: list[Candidate]) -> None:
    rows = compared([each for each in candidates if each.row["kind"] == "run"])
    assert all(each["against_baseline"] is None and not each["notes"] for each in rows)
    assert "baseline" not in verdict(rows)


def test_a_failed_method_keeps_its_place_and_changes_nothing(candidates: list[Candidate]) -> None:
    failure = "diverged at step 40: loss nan. Lower --lr."
    rows = compared([*candidates[:3], Failure("lora:rank=4", "lora", failure), *candidates[3:]])
    assert rows.pop(3) == failed_row("lora:rank=4", "lora", failure)
    assert rows == compared(candidates)


def test_nothing_but_failures_can_be_compared() -> None:
    (failed,) = compared([Failure("full", "all", "ran out of memory.")])
    assert (failed["name"], failed["result_name"], failed["kind"]) == ("full", "all", "run")
    figures = ("after", "interval", "difference", "against_baseline", "macro_f1", "trainable")
    assert all(failed[key] is None for key in figures)
    assert verdict([failed]) == (
        "There is nothing to judge: every run failed. full ran out of memory and is not judged."
    )


@dataclass
class Finished:
    splits: Splits
    runs: list[tuple[Path, dict[str, Any]]]
    correct: np.ndarray


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """Three finished runs of one method on 200 test rows; two say how fast they were."""
    generator = np.random.default_rng(1)
    labels = np.arange(200) % 2
    test = LabelledTexts(
        texts=tuple(f"text {index}" for index in range(200)),
        labels=tuple(map(int, labels)),
        **{"label_names": ("a", "b"), "source": "t.csv", "column": "text"},
        **{"rows": tuple(range(1, 201)), "lines": None},
    )
    correct = generator.random((3, 200)) < [[0.7], [0.9], [0.95]]
    runs = []
    for seed, right in enumerate(correct):
        logits = np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
        (tmp_path / str(seed)).mkdir()
        write_tensors_atomically(
            tmp_path / str(seed) / PREDICTIONS_FILE, {"test/logits": torch.from_numpy(logits)}
        )
        measured = classification_metrics(labels, logits, test.label_names)
        costs = {
            **{"trainable_parameters": 2, "total_parameters": 4, "training_seconds": 0.0},
            **{"examples_per_second": (None, 10.0, 30.0)[seed]},
            **{"peak_memory_bytes": 1, "saved_bytes": 1},
        }
        figures = {"before": {"test": measured}, "after": {"test": measured}}
        runs.append((tmp_path / str(seed), {**figures, "costs": costs, "notes": []}))
        runs[-1][1]["environment"] = {
            **{"device": "cpu", "processor": "AMD EPYC", "processes": 1, "threads": 2}
        }
    return Finished(Splits(test.select([]), None, test, {}), runs, correct)


def test_a_row_over_seeds_knows_its_rows_and_what_seeds_add(finished: Finished) -> None:
    splits = finished.splits
    several = candidate_of("head", Head(), finished.runs, "test", splits).row
    assert several["count"] == 200 and several["seeds"] == 3
    assert several["interval"] == mean_accuracy_interval(finished.correct)
    one = candidate_of("head", Head(), finished.runs[1:2], "test", splits).row
    right = int(finished.correct[1].sum())
    assert one["interval"] == accuracy_interval(right, 200)
    assert np.ptp(several["interval"]) > 2 * np.ptp(one["interval"])


@pytest.mark.parametrize(
    ("environment", "joined", "said"),
    [
        ({}, None, "AMD EPYC, 2 threads"),
        ({"processor": "", "threads": 1}, 16, "cpu, 1 thread, 16 runs jointly"),
        ({"device": "cuda:1", "gpu": "Tesla T4"}, None, "Tesla T4, 2 threads"),
        ({"processes": 4}, None, "AMD EPYC, 4 processes, 2 threads"),
    ],
)
def test_what_times_depend_on_is_said(
    finished: Finished, environment: dict[str, Any], joined: int | None, said: str
) -> None:
    runs = [
        (folder, {**metrics, "environment": metrics["environment"] | environment, "joined": joined})
        for folder, metrics in finished.runs
    ]
    for part, expected in (
        (runs, said),
        ([finished.runs[0], *runs[1:]], f"AMD EPYC, 2 threads; {said}" if environment else said),
    ):
        row = candidate_of("head", Head(), part, "test", finished.splits).row
        assert row["conditions"] == expected


def test_speeds_that_are_not_known_do_not_count(finished: Finished) -> None:
    splits = finished.splits
    speed = candidate_of("head", Head(), finished.runs, "test", splits).row["examples_per_second"]
    assert speed == 20
    unknown = candidate_of("head", Head(), finished.runs[:1], "test", splits).row
    assert unknown["examples_per_second"] is None


def test_a_failed_rows_keys_are_those_of_every_row(finished: Finished) -> None:
    (judged,) = compared([candidate_of("head", Head(), finished.runs, "test", finished.splits)])
    assert set(failed_row("full", "all", "ran out of memory.")) == set(judged)
    assert judged["failure"] is None
