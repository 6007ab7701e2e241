"""What a step of a method costs beside LoRA's: the works, one real step of each, the figures."""

from pathlib import Path

import pytest
import torch

import methods
from deltafit.methods import METHODS, parse_method
from methods import (
    BASE,
    COLUMNS,
    EXAMPLES,
    markdown,
    on_the_same_layers,
    row_of,
    steps_of,
    works_of,
)
from tests.benchmarks.test_records import MACHINE
from tests.benchmarks.test_worker import work_on
from works import OURS, WORKS


def test_a_method_with_targets_stands_on_loras_layers() -> None:
    work = WORKS[methods.NAMES[0]]
    assert on_the_same_layers(work, "dora").method == "dora:target_modules=query,value"
    assert on_the_same_layers(work, "full").method == "full"
    ranked = on_the_same_layers(work, "dora:rank=4")
    assert ranked.method == "dora:rank=4,target_modules=query,value"
    works = works_of(EXAMPLES, "Banking77")
    assert len(works) == len(METHODS) - 1
    assert all(parse_method(own.method) for _, own in works.values())
    assert {base for base, _ in works.values()} == {WORKS[methods.NAMES[1]]}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "head"])
def test_steps_are_timed_and_what_is_done_once_beside_them(tmp_path: Path, method: str) -> None:
    work = work_on(tmp_path, "lora:target_modules=query,value", steps=20)  # more than an epoch
    threads = torch.get_num_threads()
    run = steps_of(on_the_same_layers(work, method), tmp_path, threads)
    assert run["step_seconds"] > 0 and (run["once_seconds"] > 0) == (method == "head")
    base = steps_of(work, tmp_path, threads)
    assert (run["trained"] > base["trained"]) == (method == "dora")


def test_ratios_are_taken_pair_by_pair() -> None:
    def pair(base: float, own: float) -> dict[str, object]:
        runs = {
            side: {"step_seconds": s, "once_seconds": 0.25, "memory_above_floor": m, "trained": 9}
            for side, s, m in ((BASE, base, 100), (OURS, own, 150))
        }
        return {"machine": MACHINE, **runs, "wall_seconds": 1.0}

    pairs = [pair(0.1, 0.2), pair(0.4, 0.5), pair(0.1, 0.3)]
    cells = dict(zip(COLUMNS, row_of("a work", "dora", pairs), strict=True))
    assert cells["times LoRA's"] == "2.00× (1.25 to 3.00)"
    assert cells["memory, times LoRA's"] == "1.50× (1.50 to 1.50)"
    assert (cells["ms a step, LoRA"], cells["ms a step"], cells["pairs"]) == ("100", "300", "3")
    table = markdown({"a work with dora": pairs})
    assert "| a work | dora | 3 | 9 |" in table and MACHINE["processor"] in table
