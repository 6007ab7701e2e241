"""Does speed change what is learned? LoRA runs padded, packed, joined, without base dropout.

    python benchmarks/learning.py --data DATA [--only PART] [--threads N] [--output FOLDER]

DATA holds ``banking77/{train,test}.csv`` and ``sms_spam/{train,test}.csv``. "padded" is the slow
path: padded batches, torch's own dropout, float32. "packed" is the default; "packed, joined" trains
the seeds at once on one base, and "packed, base dropout off" is ``--base-dropout off``. Every run
is kept as JSON in the output folder (benchmarks/results/learning), and a call does what is missing,
so it can be stopped and continued; then the table is printed as Markdown.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from deltafit.files import read_json, write_json_atomically
from deltafit.methods import LoRA
from deltafit.training import execution
from deltafit.training.config import RunConfig
from deltafit.training.folders import begun
from deltafit.training.joined_run import execute_jointly
from deltafit.training.progress import ConsoleReporter
from deltafit.training.run import RunResult, execute
from deltafit.training.settings import BaseDropout, DataConfig, TrainingSettings
from deltafit.training.train import load_data, run_content
from measuring import machine
from records import refuse_others

SEEDS = (0, 1, 2)
PADDED, JOINED = "padded", "packed, joined"
WAYS: dict[str, BaseDropout] = {
    PADDED: "configured",
    "packed": "configured",
    JOINED: "configured",
    "packed, base dropout off": "off",
}


@dataclass(frozen=True)
class Work:
    """What is learned.

    Attributes:
        rows: training rows, a stratified sample.
        method: on MiniLM with the architecture's own head.
        settings: without seed and dropout.
    """

    rows: int
    method: LoRA
    settings: TrainingSettings


WORKS = {
    "banking77": Work(
        2000,
        LoRA(target_modules="all-linear"),
        TrainingSettings(epochs=8, batch_size=32, learning_rate=5e-3, max_length=128),
    ),
    "sms_spam": Work(
        1000,
        LoRA(target_modules=("query", "value")),
        TrainingSettings(epochs=2, batch_size=8, head_learning_rate=5e-4, max_length=128),
    ),
}


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="", help="do the runs whose names hold this")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "learning"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    check_machine(options.output, machine(options.threads))
    for seed, name, way in product(SEEDS, WORKS, WAYS):
        path = path_of(options.output, name, way, seed)
        if options.only not in path.stem or path.is_file():
            continue
        console.print(path.stem, markup=False)
        seeds = SEEDS if way == JOINED else (seed,)
        configs = [config_of(name, way, each, options.data) for each in seeds]
        results = trained(configs, way, path.with_suffix(""), console)
        for each, metrics in zip(seeds, results, strict=True):
            write_json_atomically(path_of(options.output, name, way, each), record_of(metrics))
    show(options.output)


def check_machine(output: Path, facts: dict[str, Any]) -> None:
    """Leave with a sentence if what is kept is of another machine; no mean is taken of both."""
    for path in sorted(output.glob("*.json")):
        refuse_others(path, {"machine": facts})


def path_of(output: Path, name: str, way: str, seed: int) -> Path:
    """Return where a run's record is kept."""
    return output / f"{name}--{way.replace(', ', '-').replace(' ', '-')}--{seed}.json"


def config_of(name: str, way: str, seed: int, data: Path) -> RunConfig:
    """Return the run of a work, a way and a seed."""
    work = WORKS[name]
    settings = replace(
        work.settings,
        seed=seed,
        base_dropout=WAYS[way],
        packing="off" if way == PADDED else "auto",
        precision="float32" if way == PADDED else "auto",
    )
    rows = DataConfig(str(data / name), validation="none", limit=work.rows)
    return RunConfig("minilm", rows, work.method, settings=settings)


def trained(
    configs: Sequence[RunConfig], way: str, folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Train the runs, at once if there are several, and return their metrics."""
    shutil.rmtree(folder, ignore_errors=True)
    reporter = ConsoleReporter(console)
    splits = load_data(configs[0].data)
    folders = [folder / str(config.settings.seed) for config in configs]
    with ExitStack() as stack:
        stack.enter_context(reporter.shown())
        if way == PADDED:
            stack.enter_context(torchs_dropout())
        for config, each in zip(configs, folders, strict=True):
            stack.enter_context(begun(each, run_content(config, splits), resume=False))
        if way == JOINED:
            outcomes = execute_jointly(configs, splits, folders, reporter=reporter)
        else:
            outcomes = [execute(configs[0], splits, folders[0], reporter=reporter)]
    shutil.rmtree(folder)
    results = [outcome for outcome in outcomes if isinstance(outcome, RunResult)]
    assert len(results) == len(configs), outcomes
    assert all(result.metrics["packed"] == (way != PADDED) for result in results)
    return [result.metrics for result in results]


def record_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "accuracy": metrics["after"]["test"]["accuracy"],
        "precision": metrics["precision"],
        "train_loss": metrics["history"][-1]["train_loss"],
        "costs": metrics["costs"],
        "machine": machine(torch.get_num_threads()),
    }


def torchs_dropout() -> AbstractContextManager[Any]:
    """Let training on a CPU drop by torch's own kernel."""
    return patch.object(execution, "bulk_dropout", lambda _: nullcontext())


def show(output: Path) -> None:
    """Print accuracy and last training loss: mean over seeds, and their standard deviation."""
    print("| data | way | precision | seeds | test accuracy | training loss of the last epoch |")
    print("|---|---|---|---|---|---|")
    for name in WORKS:
        for way in WAYS:
            paths = [path_of(output, name, way, seed) for seed in SEEDS]
            records = [read_json(path) for path in paths if path.is_file()]
            if records:
                figures = " | ".join(
                    spread([record[key] for record in records])
                    for key in ("accuracy", "train_loss")
                )
                precisions = ", ".join(sorted({record["precision"] for record in records}))
                print(f"| {name} | {way} | {precisions} | {len(records)} | {figures} |")


def spread(values: list[float]) -> str:
    """Return "0.931 ± 0.002", the mean and the standard deviation over seeds."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
