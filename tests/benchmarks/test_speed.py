"""Which pairs a call of the speed benchmark runs, and what it prints of them."""

import sys
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import measuring
import speed
from records import described, ratios, read_pairs
from tests.benchmarks.test_records import MACHINE, pair_of
from works import FLOAT32, OURS, TRAINER, WORKS

CHOSEN = [name for name in WORKS if "LoRA q+v" in name]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is run, in order; nothing is, and each pair is said to take two minutes."""
    seen: list[tuple[str, int]] = []

    def one_pair(name: str, pair: int, data: Path, facts: dict[str, Any]) -> dict[str, Any]:
        seen.append((name, pair))
        kept = {"machine": facts, "work": described(WORKS[name])}
        return pair_of(1, 2) | kept | {"wall_seconds": 120.0}

    monkeypatch.setattr(speed, "one_pair", one_pair)
    monkeypatch.setattr(measuring, "machine", lambda threads: MACHINE)
    return seen


def options(output: Path, budget: float) -> Namespace:
    return Namespace(output=output, pairs=2, only="LoRA q+v", budget=budget, threads=1, data=output)


def test_nothing_is_begun_that_would_end_too_late(
    ran: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed.run(options(tmp_path, budget=1.0))
    assert ran == [(CHOSEN[0], 0)]  # how long it takes is not known before
    assert "5 pairs were left out: the budget is used up." in capsys.readouterr().err
    speed.run(options(tmp_path, budget=float("inf")))
    assert ran == [(name, pair) for pair in (0, 1) for name in CHOSEN]
    told = capsys.readouterr().err
    assert f"{CHOSEN[1]}, pair 1 of 2, about 10 minutes left for all" in told
    assert "left out: the budget" not in told
    speed.run(options(tmp_path, budget=float("inf")))
    assert len(ran) == 6  # everything is kept


def test_the_kept_pairs_are_printed_as_markdown(
    ran: list[tuple[str, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speed.run(options(tmp_path, budget=float("inf")))
    monkeypatch.setattr(sys, "argv", ["speed.py", "--table", "--output", str(tmp_path)])
    speed.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == [f"| {name}" for name in CHOSEN]
    assert all("| 2.0× (2.0 to 2.0) |" in line for line in lines[2:5])


def test_the_document_shows_the_kept_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "--table"])
    speed.main()
    document = Path(speed.__file__).parents[1] / "docs" / "performance.md"
    assert capsys.readouterr().out in document.read_text(encoding="utf-8")


def test_the_readme_quotes_the_kept_records() -> None:
    root = Path(speed.__file__).parents[1]
    kept = {name: read_pairs(root / "benchmarks" / "results" / "speed", name) for name in WORKS}

    def times(name: str, ours: str = OURS) -> float:
        return median(ratios(kept[name], TRAINER, ours))

    with_lora = [name for name, work in WORKS.items() if work.method.startswith("lora")]
    fast, exact = ([times(name, ours) for name in with_lora] for ours in (OURS, FLOAT32))
    said = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    for words in (
        f"{min(fast):.1f} to {max(fast):.1f} times as fast in the LoRA rows",
        f"(in float32 {min(exact):.1f} to {max(exact):.1f})",
        f"{times('last block, 20 epochs'):.0f} times where the last block is trained",
        f"{times('head only, 20 epochs'):.0f} times where the head alone is",
    ):
        assert words in said
