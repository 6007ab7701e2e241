"""Does torch.compile pay? The same training steps and passes of prediction, eager and compiled.

    python benchmarks/compiling.py --data DATA [--steps 100] [--warm-up 20] [--pairs 3]
                                   [--limit MINUTES] [--threads N]

DATA holds ``sms_spam/train.csv``. MiniLM trains with LoRA on query and value in batches of 8, as
deltafit trains it, packed; and predicts with the adapter merged, packed, a batch of texts a step.
Each way runs in a process of its own, in turn: eager; the whole model under
``torch.compile(dynamic=True)``, in which whatever depends on the lengths of a batch breaks the
graph; and each block so by itself. Compiling happens in the warm-up, and what it took is what the
warm-up took longer than the eager one. Lengths that were not met before can make torch compile
again later, so that is counted too. A way that takes longer than the limit with its steps is
stopped, and its row says so. It prints a table as Markdown and keeps nothing.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from torch import nn

from deltafit.adapters import adapt, merge
from deltafit.adapters.structure import main_stack
from deltafit.engine import packed
from deltafit.methods import parse_method
from deltafit.tasks.inference import compute_logits
from measuring import in_another_process, machine
from ours import Clock, loaded, loop_of
from table import markdown_table, spread
from worker import splits_of
from works import OURS, WORKS, Work

WORK = WORKS["MiniLM, SMS, LoRA q+v"]
EAGER, WHOLE, BLOCKS = "eager", "whole model", "block by block"
WAYS = (EAGER, WHOLE, BLOCKS)
TEXTS = 64  # of a step of prediction
COLUMNS = (
    *("work", "way", "pairs", "ms a step, eager", "ms a step, compiled", "times as fast"),
    *("compiling s", "earned back after steps", "graphs", "of them late", "graph breaks"),
)


@dataclass
class Steps:
    """What came of running the steps of a work in one way.

    Attributes:
        seconds: of each step, the warm-up's among them.
        graphs: compiled by the end of each step.
        breaks: of graphs, in all.
    """

    seconds: list[float] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    breaks: int = 0


def main() -> None:
    """Run every way of every work in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100, help="timed, behind the warm-up")
    parser.add_argument("--warm-up", type=int, default=20, help="steps in which torch compiles")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--limit", type=float, default=15, help="minutes of a way, with its steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    # A later pair would find what an earlier one compiled.
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    console = Console(stderr=True, markup=False, highlight=False)
    work = replace(WORK, steps=options.warm_up + options.steps)
    rows = []
    for name, run in (("training", train), ("prediction, merged", predict)):
        pairs: list[dict[str, Steps]] = []
        left = list(WAYS)
        for number in range(options.pairs):
            pairs.append({})
            for way in (*left[number % len(left) :], *left[: number % len(left)]):
                console.print(f"{name}, pair {number + 1} of {options.pairs}: {way}")
                try:
                    pairs[-1][way] = in_another_process(
                        run, work, way, options.data, WORK.model, options.threads,
                        limit=60 * options.limit,
                    )  # fmt: skip
                except TimeoutError:
                    left.remove(way)
        rows += [
            row_of(name, way, pairs, options.warm_up)
            if way in left
            else stopped_row_of(name, way, options.limit)
            for way in WAYS
            if way != EAGER
        ]
    print(markdown(rows, machine(options.threads)))


class Compiling(Clock):
    """Compiles a loop's model when training begins, behind the loop's own checks.

    Args:
        way: one of ``WAYS``.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.model, self.graphs = way, nn.Module(), list[int]()

    def begin(self) -> None:
        """Compile, which torch puts off until the first step."""
        compile_in_place(self.model, self.way)

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Note how many graphs there are by now."""
        super().step(done, loss, examples_per_second)
        self.graphs.append(graphs())


def train(work: Work, way: str, data: Path, model: str, threads: int) -> Steps:
    """Train for the steps of a work."""
    torch.set_num_threads(threads)
    clock = Compiling(way)
    with tempfile.TemporaryDirectory() as folder:
        loop, _ = loop_of(work, OURS, model, splits_of(work, data), Path(folder), clock)
        clock.model = loop.classifier.model
        if not loop.run().packed:
            raise RuntimeError("The model did not run packed.")
    return Steps(_between([clock.began, *clock.moments]), clock.graphs, breaks())


def predict(work: Work, way: str, data: Path, model: str, threads: int) -> Steps:
    """Classify as many batches of texts as a work has steps, over again where they are too few."""
    torch.set_num_threads(threads)
    classifier, parts = loaded(work, model, splits_of(work, data))
    adapt(classifier.model, parse_method(work.method), head=classifier.head_parameters)
    merge(classifier.model)
    rows = parts["train"].rows
    moments, counts = [], list[int]()
    with packed(classifier.model):
        compile_in_place(classifier.model, way)
        moments.append(time.perf_counter())
        for step in range(work.steps):
            texts = [rows[place % len(rows)] for place in range(step * TEXTS, (step + 1) * TEXTS)]
            compute_logits(classifier, texts)
            moments.append(time.perf_counter())
            counts.append(graphs())
    return Steps(_between(moments), counts, breaks())


def compile_in_place(model: nn.Module, way: str) -> None:
    """Let the model, or each of its blocks, run compiled from its next call on."""
    names = {EAGER: (), WHOLE: ("",), BLOCKS: main_stack(model).blocks}[way]
    for name in names:
        model.get_submodule(name).compile(dynamic=True)


def graphs() -> int:
    """Return how many graphs this process has compiled, those compiled again included."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def breaks() -> int:
    """Return where torch left its graphs, as often as it traced past."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def row_of(name: str, way: str, pairs: Sequence[dict[str, Steps]], warm_up: int) -> list[str]:
    """Return the cells of a way of compiling, as ``COLUMNS`` names them."""
    eager, compiled = ([pair[which] for pair in pairs] for which in (EAGER, way))
    before, after = ([mean(run.seconds[warm_up:]) for run in runs] for runs in (eager, compiled))
    compiling = [
        sum(one.seconds[:warm_up]) - sum(other.seconds[:warm_up])
        for one, other in zip(compiled, eager, strict=True)
    ]
    spared = median(before) - median(after)
    late = [run.graphs[-1] - run.graphs[warm_up - 1] for run in compiled]
    return [
        name,
        way,
        str(len(pairs)),
        *(f"{1000 * median(seconds):.1f}" for seconds in (before, after)),
        spread([one / other for one, other in zip(before, after, strict=True)]),
        f"{median(compiling):.0f}",
        f"{max(0.0, median(compiling)) / spared:.0f}" if spared > 0 else "never",
        *(f"{median(counts):.0f}" for counts in ([run.graphs[-1] for run in compiled], late)),
        f"{median(run.breaks for run in compiled):.0f}",
    ]


def stopped_row_of(name: str, way: str, limit: float) -> list[str]:
    """Return the cells of a way that took longer than ``limit`` minutes."""
    cells = dict.fromkeys(COLUMNS, "–")
    named = {"work": name, "way": way, "compiling s": f"stopped after {60 * limit:.0f}"}
    return list((cells | named).values())


def markdown(rows: Sequence[Sequence[str]], facts: dict[str, Any]) -> str:
    """Return the table and what it was measured on."""
    lines = markdown_table(COLUMNS, rows, words=2)
    words = f"{facts['processor']}, {facts['threads']} threads, torch {facts['versions']['torch']}"
    return "\n".join([*lines, "", f"Medians of the pairs; ratios with their spread. {words}."])


def _between(moments: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(moments)]


if __name__ == "__main__":
    main()
