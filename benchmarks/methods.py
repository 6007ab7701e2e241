"""What does a step of each method cost, beside a step of LoRA? Pairs on the same work.

    python benchmarks/methods.py --data DATA [--only PART] [--methods dora full] [--pairs 3]
                                 [--threads N] [--output FOLDER]
    python benchmarks/methods.py --table [--output FOLDER]

DATA holds ``banking77/train.csv`` and ``sms_spam/train.csv``. The works are the speed benchmark's
two of MiniLM with LoRA; every method with targets has LoRA's in its place, and all else at its
defaults; the others are as they are. A pair is LoRA and one method in turn, each in a process of
its own. Every pair is kept as JSON in the output folder (benchmarks/results/methods), and a call
adds what is missing, the first pair of every method before any second one. A method that keeps the
states of frozen layers computes them once for all epochs: that is told apart, and its steps are
counted without.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

import ours
from deltafit.files import write_json_atomically
from deltafit.methods import METHODS, parse_method
from measuring import in_another_process, machine, memory
from records import Pair, described, missing, path_of, read_pairs
from table import markdown_table, spread
from worker import location_of, splits_of
from works import OURS, WARM_UP, WORKS, Work

BASE = "lora"
NAMES = ("MiniLM, SMS, LoRA q+v", "MiniLM, Banking77, LoRA all")
# Every method but the base; one is nothing without a setting.
EXAMPLES = [{"modules": "modules:pattern=attention"}.get(n, n) for n in METHODS if n != BASE]
COLUMNS = (
    *("work", "method", "pairs", "trained", "ms a step, LoRA", "ms a step"),
    *("times LoRA's", "memory, times LoRA's", "once, s"),
)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", default="", help="run the works whose names hold this")
    parser.add_argument("--methods", nargs="+", default=EXAMPLES, help="such as dora ia3")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    output = Path(__file__).parent / "results" / "methods"
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--table", action="store_true", help="print the kept pairs alone")
    options = parser.parse_args()
    works = works_of(options.methods, options.only)
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to run anything")
        run(works, options)
    kept = {name: read_pairs(options.output, name) for name in works}
    print(markdown({name: pairs for name, pairs in kept.items() if pairs}))


def works_of(methods: Sequence[str], only: str = "") -> dict[str, tuple[Work, Work]]:
    """Return LoRA's work and the method's own, by "WORK with METHOD"."""
    return {
        f"{name} with {method}": (WORKS[name], on_the_same_layers(WORKS[name], method))
        for method in methods
        for name in NAMES
        if only in name
    }


def on_the_same_layers(work: Work, method: str) -> Work:
    """Return LoRA's work with another method in its place, on its layers if it chooses any."""
    chooses = hasattr(parse_method(method), "target_modules")
    targets = work.method.partition(":")[2]
    joint = "," if ":" in method else ":"
    return replace(work, method=f"{method}{joint}{targets}" if chooses else method)


def run(works: Mapping[str, tuple[Work, Work]], options: argparse.Namespace) -> None:
    """Run the pairs that are not kept; the order turns, so that neither side is always first."""
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    console = Console(stderr=True, markup=False, highlight=False)
    facts = machine(options.threads)
    for name, number in missing(options.output, works, options.pairs, facts):
        console.print(f"{name}, pair {number + 1} of {options.pairs}")
        began, sides = time.monotonic(), dict(zip((BASE, OURS), works[name], strict=True))
        runs = {
            side: in_another_process(steps_of, sides[side], options.data, options.threads)
            for side in list(sides)[:: 1 if number % 2 else -1]
        }
        kept = {"machine": facts, "work": described(works[name])}
        record = {**kept, **runs, "wall_seconds": time.monotonic() - began}
        write_json_atomically(path_of(options.output, name, number), record)


def steps_of(work: Work, data: Path, threads: int) -> dict[str, Any]:
    """Return what the steps of a work took behind the warm-up, and what was trained in them."""
    torch.set_num_threads(threads)
    splits, clock = splits_of(work, data), ours.Clock()
    with tempfile.TemporaryDirectory() as folder:
        model, floor = location_of(work.model, Path(folder)), memory()
        loop, _ = ours.loop_of(work, OURS, model, splits, Path(folder), clock)
        trained = [p.numel() for p in loop.classifier.model.parameters() if p.requires_grad]
        loop.run()
    seconds = clock.moments[-1] - clock.moments[WARM_UP - 1]
    return {
        "step_seconds": seconds / (len(clock.moments) - WARM_UP),
        "once_seconds": clock.began - clock.made if loop.course.kept else 0.0,
        "memory_above_floor": memory() - floor,
        "trained": sum(trained),
    }


def markdown(kept: Mapping[str, Sequence[Pair]]) -> str:
    """Return the table of the kept pairs."""
    rows = [row_of(*name.split(" with "), pairs) for name, pairs in kept.items()]
    machines = {
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['versions']['torch']}"
        for pairs in kept.values()
        for facts in (pair["machine"] for pair in pairs)
    }
    note = "Medians of the pairs; ratios with their spread. " + "; ".join(sorted(machines)) + "."
    return "\n".join([*markdown_table(COLUMNS, rows, words=2), "", note])


def row_of(work: str, method: str, pairs: Sequence[Pair]) -> list[str]:
    """Return the cells of a method on a work, as ``COLUMNS`` names them."""

    def figures(key: str, side: str = OURS) -> list[float]:
        return [pair[side][key] for pair in pairs]

    def times(key: str) -> str:
        both = zip(figures(key), figures(key, BASE), strict=True)
        return spread([own / base for own, base in both], digits=2)

    return [
        work,
        method,
        str(len(pairs)),
        f"{figures('trained')[0]:,.0f}",
        *(f"{1000 * median(figures('step_seconds', side)):.0f}" for side in (BASE, OURS)),
        *(times(key) for key in ("step_seconds", "memory_above_floor")),
        f"{median(figures('once_seconds')):.1f}",
    ]


if __name__ == "__main__":
    main()
