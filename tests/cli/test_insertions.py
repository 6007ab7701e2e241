"""Insertions on the command line: trained, sized to a budget, used, and refused by merging."""

import json
from pathlib import Path

import pytest

from deltafit.experiments.tables import format_count
from deltafit.files import read_json
from tests.cli.commands import Tiny, done, refused

pytestmark = pytest.mark.slow

# BERT of 3 blocks, 32 wide and with heads for three classes.
METHODS = {
    "bottleneck:size=4": (24, 3 * 2 * (2 * 4 * 32 + 4 + 32)),
    "prefix:count=3": (6, 3 * 2 * 3 * 32),
    "prompt:count=3": (1, 3 * 32),
}


@pytest.mark.parametrize("method", METHODS)
def test_from_training_to_prediction(tiny: Tiny, method: str, tmp_path: Path) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    done("train", *tiny.start(run), "--method", method)
    done("verify", run)
    rows = [json.loads(line) for line in done("predict", run, "w2 w9", "w0").splitlines()]
    assert [row["text"] for row in rows] == ["w2 w9", "w0"]
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-5 for row in rows)
    tensors, values = METHODS[method]
    counted = f"{tensors} tensor{'s' if tensors > 1 else ''}, {format_count(values)} values"
    shown = done("inspect", run)
    assert f"Inserted: {counted}." in shown
    assert "Stored whole: 2 tensors, 99 values." in shown
    assert "cannot be merged" in refused(1, "merge", run, "--output", merged)
    assert not merged.exists()


def test_a_comparison_under_a_budget_gives_each_its_size(tiny: Tiny, tmp_path: Path) -> None:
    names = [method.partition(":")[0] for method in METHODS]
    output, words = tmp_path / "output", ("--methods", ",".join(names), "--budget", "1000")
    done("compare", *tiny.start(output), *words)
    methods = {row["name"] for row in read_json(output / "comparison.json")["rows"]}
    # 2·w·size + size + w a place; 2·w·count a block; w·count.
    assert {"bottleneck:size=2", "prefix:count=5", "prompt:count=31"} <= methods
