"""Eager and compiled steps: what runs, and the figures taken from them."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import compiling
from compiling import BLOCKS, COLUMNS, EAGER, WHOLE, Steps, row_of, stopped_row_of
from measuring import in_another_process
from tests.benchmarks.test_records import MACHINE
from tests.benchmarks.test_worker import work_on


def test_compiling_is_earned_back_by_faster_steps() -> None:
    pair = {
        EAGER: Steps([2.0, 2.0, 2.0, 2.0], [0, 0, 0, 0]),
        WHOLE: Steps([21.0, 7.0, 1.0, 2.0], [5, 8, 8, 9], breaks=3),
        BLOCKS: Steps([3.0, 3.0, 2.5, 2.5], [1, 1, 1, 1]),
    }
    cells = dict(zip(COLUMNS, row_of("training", WHOLE, [pair], 2), strict=True))
    # 28 s of warm-up in place of 4; then half a second is spared in each step.
    assert (cells["compiling s"], cells["earned back after steps"]) == ("24", "48")
    assert cells["times as fast"] == "1.3×"
    assert (cells["graphs"], cells["of them late"], cells["graph breaks"]) == ("9", "1", "3")
    slower = dict(zip(COLUMNS, row_of("training", BLOCKS, [pair, pair], 2), strict=True))
    assert (slower["pairs"], slower["earned back after steps"]) == ("2", "never")
    assert slower["times as fast"] == "0.8× (0.8 to 0.8)"


def test_a_way_that_takes_too_long_is_stopped_and_said() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        in_another_process(time.sleep, 60, limit=0.1)
    assert time.monotonic() - began < 30 and not multiprocessing.active_children()
    cells = dict(zip(COLUMNS, stopped_row_of("training", WHOLE, 15), strict=True))
    assert (cells["work"], cells["way"]) == ("training", WHOLE)
    assert (cells["compiling s"], cells["times as fast"]) == ("stopped after 900", "–")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "way"),
    [(compiling.train, EAGER), (compiling.train, WHOLE), (compiling.predict, BLOCKS)],
)
def test_every_way_runs_the_steps(
    run: Callable[..., Steps], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def note(module: nn.Module, *, dynamic: bool) -> None:  # compiling itself takes minutes
        asked.append((type(module).__name__, dynamic))

    monkeypatch.setattr(nn.Module, "compile", note)
    monkeypatch.setattr(compiling, "TEXTS", 5)
    work = work_on(tmp_path, "lora:target_modules=query,value", steps=3)
    steps = run(work, way, tmp_path, work.model, torch.get_num_threads())
    assert len(steps.seconds) == len(steps.graphs) == 3 and min(steps.seconds) > 0
    assert (
        asked
        == {
            EAGER: [],
            WHOLE: [("BertForSequenceClassification", True)],
            BLOCKS: [("BertLayer", True)] * 3,
        }[way]
    )


def test_graphs_and_their_breaks_are_counted() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    torch.compiler.reset()
    before = compiling.graphs(), compiling.breaks()
    torch.compile(broken, backend="eager")(torch.ones(3))
    assert (compiling.graphs() - before[0], compiling.breaks() - before[1]) == (2, 1)


def test_the_table_says_what_it_was_measured_on() -> None:
    pair = {way: Steps([1.0, 1.0], [0, 0]) for way in compiling.WAYS}
    text = compiling.markdown([row_of("training", WHOLE, [pair], 1)], MACHINE)
    header, _, row, _, note = text.splitlines()
    assert header.count("|") == row.count("|") == len(COLUMNS) + 1
    assert MACHINE["processor"] in note
