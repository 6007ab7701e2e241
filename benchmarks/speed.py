"""How fast is training? deltafit against PEFT and transformers' Trainer, on the same work.

    python benchmarks/speed.py --data DATA [--pairs 3] [--only PART] [--threads N] [--output FOLDER]

DATA holds ``banking77/train.csv`` and ``sms_spam/train.csv``. Each pair is one run of deltafit and
one of every rival, in turn, each in a process of its own with the same model, rows, batch size,
targets and number of steps; the warm-up steps are left out. A ratio is the rival's time for a real
token (padding apart: the sides shuffle for themselves, so their rows differ) divided by deltafit's
in the same pair; the median is printed with the smallest and the largest. Every pair is
kept as JSON in the output folder (benchmarks/results/speed), and a call adds what is missing, so
the benchmark can be stopped and continued.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from works import SIDES, WORKS

from deltafit.files import read_json, write_json_atomically

OURS, RIVAL = SIDES[:2]
LAST = 5  # steps whose mean loss is shown


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="", help="run the works whose names hold this")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "speed")
    options = parser.parse_args()
    console = Console(stderr=True)
    for name in WORKS:
        if options.only not in name:
            continue
        for pair in range(options.pairs):
            path = path_of(options.output, name, pair)
            if not path.is_file():
                console.print(f"{name}, pair {pair + 1} of {options.pairs}")
                write_json_atomically(path, one_pair(name, pair, options.data, options.threads))
    show(options.output)


def path_of(output: Path, name: str, pair: int) -> Path:
    """Return where a pair is kept."""
    return output / f"{name.replace(' ', '-').replace(',', '')}--{pair}.json"


def one_pair(name: str, pair: int, data: Path, threads: int) -> dict[str, Any]:
    """Run every side once; the order turns with the pairs, so that no side is always first."""
    sides = SIDES[:2] if WORKS[name].method == "predict" else SIDES
    start = pair % len(sides)
    sides = sides[start:] + sides[:start]
    return {"threads": threads} | {side: one_side(name, side, data, threads) for side in sides}


def one_side(name: str, side: str, data: Path, threads: int) -> dict[str, Any]:
    """Run one side in a process of its own; return what it measured."""
    worker = Path(__file__).parent / "works.py"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(worker), name, side, str(data), str(threads)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}, {side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(output: Path) -> None:
    """Print the table of all pairs that are kept, and the loss curves side by side."""
    table = Table(title="Times the rival's speed: median of paired ratios (smallest to largest)")
    columns = ("work", "pairs", "threads", "deltafit s", "PEFT s", "against PEFT", "bar")
    columns += ("against PEFT, grouped", "memory", "last loss", "accuracy")
    for column in columns:
        table.add_column(column, justify="left" if column == "work" else "right")
    curves = []
    for name, work in WORKS.items():
        paths = sorted(output.glob(path_of(output, name, 0).name.replace("--0", "--*")))
        pairs = [read_json(path) for path in paths]
        if not pairs:
            continue
        ours, rival = ([pair[side] for pair in pairs] for side in (OURS, RIVAL))
        table.add_row(
            name,
            str(len(pairs)),
            "/".join(sorted({str(pair["threads"]) for pair in pairs})),
            f"{median(run['seconds'] for run in ours):.1f}",
            f"{median(run['seconds'] for run in rival):.1f}",
            *(ratio(pairs, side, "seconds") for side in SIDES[1:2]),
            f"{work.bar:g}×",
            ratio(pairs, SIDES[2], "seconds"),
            f"{median(memory(pair) for pair in pairs):.2f}",
            " / ".join(map(last_loss, (ours, rival))),
            " / ".join(f"{median(run['accuracy'] for run in runs):.3f}" for runs in (ours, rival)),
        )
        if ours[0]["losses"]:
            curves.append((name, ours[0]["losses"], rival[0]["losses"]))
    console = Console(width=200)
    console.print(table)
    console.print(
        "Seconds are of the same number of steps (or texts), PEFT's in float32 and deltafit's in "
        "what --precision auto chose (see the records); prediction is against "
        "transformers' pipeline, full fine-tuning and heads against the Trainer alone. Memory is "
        "deltafit's peak above the imports as a share of PEFT's; the loss is the mean of the last "
        f"{LAST} steps and the accuracy that of held-out rows, deltafit / PEFT. The bars are for "
        "a machine with bf16 units."
    )
    for name, ours_losses, rival_losses in curves:
        console.print(f"{name}: loss, deltafit {curve(ours_losses)}; PEFT {curve(rival_losses)}")


def ratio(pairs: list[dict[str, Any]], side: str, key: str) -> str:
    """Return "2.1× (2.0 to 2.3)": a side's figure a token divided by deltafit's, pair by pair."""
    ratios = [
        pair[side][key] / pair[side]["tokens"] / (pair[OURS][key] / pair[OURS]["tokens"])
        for pair in pairs
        if side in pair
    ]
    if not ratios:
        return ""
    return f"{median(ratios):.1f}× ({min(ratios):.1f} to {max(ratios):.1f})"


def memory(pair: dict[str, Any]) -> float:
    """Return deltafit's memory above the imports as a share of PEFT's."""
    return float(pair[OURS]["memory_above_floor"] / pair[RIVAL]["memory_above_floor"])


def last_loss(runs: list[dict[str, Any]]) -> str:
    """Return the median over runs of the mean loss of the last steps; a dash without steps."""
    if not runs[0]["losses"]:
        return "–"
    return f"{median(sum(run['losses'][-LAST:]) / LAST for run in runs):.3f}"


def curve(losses: list[float]) -> str:
    """Return the mean losses of the five fifths of a run."""
    edges = [round(len(losses) * part / 5) for part in range(6)]
    means = [sum(losses[start:end]) / (end - start) for start, end in pairwise(edges)]
    return " ".join(f"{mean:.3f}" for mean in means)


if __name__ == "__main__":
    main()
