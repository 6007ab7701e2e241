"""Where does the time of a training step go? torch's profiler around some steps, summed up.

    python benchmarks/profiling.py --data DATA [--only PART] [--steps 10] [--rival] [--threads N]

DATA holds ``banking77/{train,test}.csv`` and ``sms_spam/train.csv``. Every work of the speed
benchmark runs in a process of its own, deltafit's side and with ``--rival`` the rival's too. A step
of prediction is a batch's worth of texts, and all steps of it are profiled. An
operator counts where the outermost one belongs that it runs within: a copy within a product is part
of the product. What is left of the steps' time is Python. The profiler itself costs time at every
operator, so shares tell more than milliseconds, and many small operators seem dearer than they are.
It prints a table as Markdown and keeps nothing.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

import many_adapters
import ours
import predicting
import rivals
import sweep
from measuring import Stopwatch, has_bf16_units, in_another_process, machine
from table import markdown_table
from worker import location_of, splits_of
from works import OURS, REDUCED, TRAINER, WARM_UP, WORKS, Work

# By the first pattern that fits an operator's name; see `_word`.
KINDS = {
    "optimiser": r"optimizer\.|vector_norm|_foreach",
    "attention": r"attention|bmm$|softmax",
    "dropout and random numbers": r"drop|bernoulli|^(rand|random_|uniform_|normal_)",
    "matrix products": r"linear|^(addmm|mm|t?matmul|addmv|mv|einsum)$|^_product",
    "activation functions": r"gelu|silu|relu|tanh|sigmoid",
    "norms": r"layer_?norm|rms_?norm|^(r?sqrt|mean|pow)$",
    "copies and indexing": r"copy|clone|contiguous|index|embedding|split|slice|select|gather"
    r"|scatter|view|reshape|permute|transpose|expand|squeeze|flatten|^(cat|stack|t|to|_permuted|_joined)$",
}
REST, PYTHON = "everything else", "Python"
PREDICTED = {"mixed": lambda work: work.steps, "predict": lambda w: -(-w.steps // w.batch_size)}
COLUMNS = ("work", "side", "ms a step", *KINDS, REST, PYTHON)


def main() -> None:
    """Profile the works that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="", help="profile the works whose names hold this")
    parser.add_argument("--steps", type=int, default=10, help="profiled, behind the warm-up")
    parser.add_argument(
        "--rival", action="store_true", help="profile the Trainer, or what else it is, too"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    console = Console(stderr=True, markup=False, highlight=False)
    rows = []
    for name, work in WORKS.items():
        if options.only not in name:
            continue
        sides = work.sides(bf16=has_bf16_units())
        # A sweep is sixteen runs of the Trainer, each a step like the first work's.
        rivals_too = options.rival and work.method != "sweep"
        chosen = (
            [side for side in sides[1:] if side in (*sides[1:2], REDUCED)] if rivals_too else []
        )
        predicts = work.method in PREDICTED
        steps = PREDICTED[work.method](work) if predicts else options.steps
        for side in [OURS, *chosen]:
            console.print(f"{name}: {side}")
            measure = predicted if predicts else profiled
            seconds = in_another_process(measure, work, side, options.data, steps, options.threads)
            rows.append(row_of(name, side, seconds, steps))
    print(markdown(rows, machine(options.threads), options.steps))


def profiled(
    work: Work, side: str, data: Path, steps: int, threads: int | None = None
) -> dict[str, float]:
    """Return the seconds of some steps behind the warm-up, by kind; ``PYTHON`` and ``REST`` too.

    Args:
        work: a training work.
        side: deltafit, or a Trainer.
        data: the folder that holds the data sets.
        steps: how many.
        threads: of torch; None leaves them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    splits = splits_of(work, data)
    work = replace(work, steps=WARM_UP + steps)
    window = Window(steps)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = location_of(work.model, place)
        if side in (TRAINER, REDUCED):
            rivals.trainer_of(work, side, model, splits, place, TrainerClock(window))[0].train()
        elif work.method == "sweep":
            sweep.loop_of(work, side, model, splits, place, LoopClock(window))[0].run({})
        else:
            ours.loop_of(work, side, model, splits, place, LoopClock(window))[0].run()
    return summed(window.profiler.events(), window.seconds)


def predicted(
    work: Work, side: str, data: Path, steps: int, threads: int | None = None
) -> dict[str, float]:
    """Return the seconds of a work of prediction by kind, as ``profiled`` does of a training."""
    if threads is not None:
        torch.set_num_threads(threads)
    run = many_adapters.run if work.method == "mixed" else predicting.predict
    watch = ProfilingWatch()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = location_of(work.model, place)
        run(work, side, model, splits_of(work, data, judged=True), place, watch)
    return summed(watch.profiler.events(), watch.seconds)


class ProfilingWatch(Stopwatch):
    """Profiles what it times."""

    def __init__(self) -> None:
        super().__init__()
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def __enter__(self) -> Stopwatch:
        self.profiler.start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.profiler.stop()


class Window:
    """Profiles some steps behind the warm-up.

    Args:
        steps: how many.

    Attributes:
        profiler: holds their operators afterwards.
        seconds: what the steps took, profiled.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.seconds, self._began = steps, 0, 0.0, 0.0
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def step(self) -> None:
        """Count a step that has ended."""
        ended = time.perf_counter()
        self.done += 1
        if self.done == WARM_UP + self.steps:
            self.seconds = ended - self._began
            self.profiler.stop()
        elif self.done == WARM_UP:
            self.profiler.start()
            self._began = time.perf_counter()


class LoopClock(ours.Clock):
    """Tells a window of the steps of deltafit's loop."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Count a training step."""
        if loss is not None:
            self._window.step()


class TrainerClock(rivals.Clock):
    """Tells a window of the steps of the Trainer."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count a training step."""
        self._window.step()


def summed(events: Iterable[FunctionEvent], seconds: float) -> dict[str, float]:
    """Return the operators' own seconds by kind; what they leave of ``seconds`` is Python."""
    sums = dict.fromkeys((*KINDS, REST), 0.0)
    for event in events:
        sums[kind_of(event)] += event.self_cpu_time_total / 1e6
    return {**sums, PYTHON: seconds - sum(sums.values())}


def kind_of(event: FunctionEvent) -> str:
    """Return the kind of the outermost operator around an event that has one, or of itself."""
    kind, around = REST, event
    while around is not None:
        word = _word(around.name)
        fits = (name for name, pattern in KINDS.items() if re.search(pattern, word))
        kind, around = next(fits, kind), around.cpu_parent
    return kind


def _word(name: str) -> str:
    """Return what an operator is called, alike forward and backward: "addmm", "_drop"."""
    return re.sub(r"backward\d*$", "", name.rpartition(":")[2].strip().lower())


def row_of(name: str, side: str, seconds: dict[str, float], steps: int) -> list[str]:
    """Return the cells of one side of a work, as ``COLUMNS`` names them."""
    whole = sum(seconds.values())
    parts = (f"{1000 * part / steps:.1f} ({part / whole:.0%})" for part in seconds.values())
    return [name, side, f"{1000 * whole / steps:.1f}", *parts]


def markdown(rows: Sequence[Sequence[str]], facts: dict[str, Any], steps: int) -> str:
    """Return the table and what it was measured on."""
    lines = markdown_table(COLUMNS, rows, words=2)
    words = f"{facts['processor']}, {facts['threads']} threads, torch {facts['versions']['torch']}"
    note = f"Milliseconds of a step, and shares, under the profiler; {steps} steps of a training."
    return "\n".join([*lines, "", f"{note} {words}."])


if __name__ == "__main__":
    main()
