"""How fast is it? deltafit against its rivals on the same work, in pairs.

    python benchmarks/speed.py --data DATA [--pairs 3] [--only PART] [--budget MINUTES]
                               [--threads N] [--output FOLDER]
    python benchmarks/speed.py --table [--output FOLDER]

DATA holds ``banking77/{train,test}.csv`` and ``sms_spam/train.csv``. A pair is one run of deltafit
and one of every rival, in turn, each in a process of its own with the same model, rows, batch size,
targets, seeds and number of steps; the warm-up steps are left out. A ratio is the rival's time for
a real token (padding apart: the sides shuffle for themselves, so their rows differ) divided by
deltafit's in the same pair. Every pair is kept as JSON in the output folder
(benchmarks/results/speed), and a call adds what is missing, the first pair of every work before any
second one: so it can be stopped and continued, and ``--budget`` begins no pair that would end too
late. ``--table`` prints the kept pairs as Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deltafit.files import write_json_atomically
from records import (
    Pair,
    described,
    digest_of_code,
    expected_seconds,
    missing,
    path_of,
    read_pairs,
)
from table import BESIDE, SPEED, curves, markdown, notes_on, others, speeds
from works import REDUCED, WORKS


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="", help="run the works whose names hold this")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "speed")
    parser.add_argument("--table", action="store_true", help="print the kept pairs as Markdown")
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to run anything")
        run(options)
    kept = {name: read_pairs(options.output, name) for name in WORKS}
    kept = {name: pairs for name, pairs in kept.items() if pairs}
    if options.table:
        print(markdown(WORKS, kept))
    else:
        show(kept)


def run(options: argparse.Namespace) -> None:
    """Run the pairs that are not kept, as far as the budget lets them."""
    from measuring import machine

    console = Console(stderr=True, markup=False, highlight=False)
    facts = machine(options.threads)
    if not facts["bf16_units"]:
        console.print(f"{REDUCED!r} is left out: this machine has no bf16 units.")
    works = {name: work for name, work in WORKS.items() if options.only in name}
    names = list(works)
    began, jobs = time.monotonic(), missing(options.output, works, options.pairs, facts)
    left_out = 0
    for number, (name, pair) in enumerate(jobs):
        expected = expected_seconds(options.output, names)
        elapsed = (time.monotonic() - began) / 60
        if elapsed + expected.get(name, 0.0) / 60 > options.budget:
            left_out += 1
            continue
        rest = sum(expected[other] for other, _ in jobs[number:]) / 60 if expected else None
        left = "" if rest is None else f", about {rest:.0f} minutes left for all"
        console.print(f"{name}, pair {pair + 1} of {options.pairs}{left}")
        result = one_pair(name, pair, options.data, facts)
        write_json_atomically(path_of(options.output, name, pair), result)
    if left_out:
        console.print(f"{left_out} pairs were left out: the budget is used up.")


def one_pair(name: str, pair: int, data: Path, facts: dict[str, Any]) -> Pair:
    """Run every side once; the order turns with the pairs, so that no side is always first."""
    began = time.monotonic()
    sides = WORKS[name].sides(bf16=facts["bf16_units"])
    start = pair % len(sides)
    runs = {
        side: one_side(name, side, data, facts["threads"]) for side in sides[start:] + sides[:start]
    }
    kept = {"machine": facts, "work": described(WORKS[name]), "code": digest_of_code()}
    return {**kept, **runs, "wall_seconds": time.monotonic() - began}


def one_side(name: str, side: str, data: Path, threads: int) -> dict[str, Any]:
    """Run one side in a process of its own; return what it measured."""
    worker = Path(__file__).parent / "worker.py"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(worker), name, side, str(data), str(threads)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}, {side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(kept: dict[str, list[Pair]]) -> None:
    """Print the tables for a terminal, and what is to be known of them."""
    console = Console(width=240, markup=False, highlight=False)
    for title, columns, rows in (
        ("Times the rival's speed: median of paired ratios (spread)", SPEED, speeds(WORKS, kept)),
        ("Beside it", BESIDE, others(WORKS, kept)),
    ):
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="left" if column == "work" else "right")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    for line in [*notes_on(kept), *curves(kept)]:
        console.print(line)


if __name__ == "__main__":
    main()
