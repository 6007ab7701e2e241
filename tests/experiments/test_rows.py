"""Every run is told how it stands against the best cheap baseline."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deltafit.experiments.report import comparison_table, verdict, write_report
from deltafit.experiments.rows import Candidate, compared
from deltafit.experiments.statistics import paired_over_seeds
from deltafit.files import read_json
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
    correct = {str(each.row["name"]): each.correct for each in candidates}
    for name in ("lora", "head", "full"):
        expected = vars(paired_over_seeds(correct[name], correct[FROZEN]))
        assert rows[name]["against_baseline"] == {"name": FROZEN, **expected}
    assert rows["majority"]["against_baseline"] is rows[FROZEN]["against_baseline"] is None
    assert [note.split(" (")[0] for note in rows["lora"]["notes"]] == [
        f"does not beat {FROZEN} beyond noise"
    ]
    assert [note.split(" (")[0] for note in rows["head"]["notes"]] == [
        f"is worse than {FROZEN} beyond noise"
    ]
    assert rows["lora"]["notes"][0].endswith("(−0.7 ± 3.0)")
    assert not any(rows[name]["notes"] for name in ("majority", FROZEN, "full"))


def test_the_notes_stand_in_terminal_markdown_and_json(
    candidates: list[Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    rows = compared(candidates)
    write_report(tmp_path, rows, {}, {}, {})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison_table(rows, 200))
    stored = read_json(tmp_path / "comparison.json")
    for each in rows:
        for note in each["notes"]:
            assert f"{each['name']}: {note}" in capture.get()
            assert f"- {each['name']}: {note}" in (tmp_path / "report.md").read_text()
    assert stored["rows"] == rows and sum(len(each["notes"]) for each in rows) == 2
    assert f"full beats the best cheap baseline, {FROZEN}, by 14.8 ± " in verdict(rows)


def test_without_baselines_nothing_is_said_of_them(candidates: list[Candidate]) -> None:
    rows = compared([each for each in candidates if each.row["kind"] == "run"])
    assert all(each["against_baseline"] is None and not each["notes"] for each in rows)
    assert "baseline" not in verdict(rows)
