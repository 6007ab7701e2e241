"""Runs of a recipe that are listened to, stopped and compared.

Import as ``from tests.experiments.recipe_runs import Listening, same_rows``.
"""

import csv
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.judgement import Comparison
from deltafit.files import read_json
from deltafit.training.progress import Silent

# Times and what the process happened to hold are no two runs' the same.
MEASURED = ("seconds", "examples_per_second", "peak_memory_bytes", "seconds_range",
            "peak_memory_range")  # fmt: skip

RUN = """
import signal
import sys
import deltafit.experiments.report as report
from deltafit.experiments.recipe_run import run

report.save_png = lambda figure, path: path.touch()
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever began the tests may ignore it
print("begun", flush=True)
run(sys.argv[1], sys.argv[2], processes=int(sys.argv[3]))
"""


def started(recipe: Path, store: Path, processes: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "src:."}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(recipe), str(store), str(processes)],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def killed_at_random(recipe: Path, store: Path, seed: int) -> None:
    """Kill the command four times, or fewer if it is faster; at least once."""
    chosen, killed = random.Random(seed), 0
    while killed < 4:
        process = started(recipe, store)
        try:
            process.wait(timeout=chosen.uniform(1.5, 5))
            break  # it was faster
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed > 0


class Listening(Silent):
    """Keeps what was said, and counts training steps; presses Ctrl-C in one of them."""

    def __init__(self, at: int = -1) -> None:
        self.said: list[str] = []
        self.steps, self._press = 0, at

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        if loss is not None:
            self.steps += 1
            if self.steps == self._press:
                os.kill(os.getpid(), signal.SIGINT)

    @property
    def begun(self) -> list[str]:
        return [sentence for sentence in self.said if "(run " in sentence]


def same_rows(one: Comparison, other: Comparison) -> None:
    for first, second in zip(one.rows, other.rows, strict=True):
        same_row(first, second)


def same_row(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key in first:
        if key == "saved_bytes" and first[key] is not None:
            # The digits of measured seconds are part of what is saved.
            assert first[key] == pytest.approx(second[key], rel=1e-2)
        elif key not in MEASURED:
            assert first[key] == second[key], (first["name"], key)


def same_report(one: Path, other: Path) -> None:
    """Assert that two folders' tables are the same but for what was measured of the machine."""
    left_out = {*MEASURED, "minutes", "saved_bytes"}
    left_out |= {f"{name}_{end}" for name in MEASURED for end in ("low", "high")}
    for name in ("comparison.csv", "runs.csv"):
        first, second = (
            [{key: line[key] for key in line if key not in left_out} for line in lines_of(table)]
            for table in (one / name, other / name)
        )
        assert first == second and first, name
    first, second = (read_json(folder / "comparison.json") for folder in (one, other))
    for row, like in zip(first["rows"], second["rows"], strict=True):
        same_row(row, like)
    for key in ("facts", "verdict"):
        assert first[key] == second[key], key
    assert first["sections"].keys() == second["sections"].keys()
    for key in first["sections"].keys() - {"costs", "published"}:  # whose times are measured
        assert first["sections"][key] == second["sections"][key], key


def lines_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
