"""How well is it foretold what a run will take? Each run is estimated, then done.

    python benchmarks/estimating.py --data DATA [--rounds 1] [--only PART] [--threads N]
                                    [--output FOLDER]
    python benchmarks/estimating.py --table [--output FOLDER]

DATA holds ``banking77/train.csv`` and ``sms_spam/train.csv``. An estimate and the run that it is of
are done in turn, each in a process of its own. What they said is kept as JSON in the output folder
(benchmarks/results/estimating), and a call adds what is missing; ``--table`` prints it as Markdown.
The errors are those of the estimate against the run. Times change with what else the machine does,
and between the two: the same run done twice differs too.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from deltafit.files import write_json_atomically
from measuring import in_another_process, machine
from records import Pair, described, missing, path_of, read_pairs
from table import markdown_table
from worker import location_of

MEMORY_BAR, TIME_BAR = 0.15, 0.20
FIGURES = ("memory", "training", "whole")


@dataclass(frozen=True)
class Run:
    """One row of the benchmark: a run of a minute or two.

    Attributes:
        model: a catalogue name, or ``bert-base`` for random weights in that shape.
        data: folder under the data path, or a catalogue name.
        method: as deltafit's command line has it.
        rows: training rows, those held out not counted.
        settings: hyperparameters.
    """

    model: str
    data: str
    method: str
    rows: int
    settings: dict[str, Any] = field(default_factory=dict)


_ALL = "lora:target_modules=all-linear"


def _of(batch: int, length: int, epochs: int, **settings: Any) -> dict[str, Any]:
    return {"batch_size": batch, "max_length": length, "epochs": epochs, **settings}


RUNS = {
    "MiniLM, SMS, LoRA q+v": Run("minilm", "sms_spam", "lora", 800, _of(8, 128, 2)),
    "MiniLM, Banking77, LoRA all": Run(
        "minilm", "banking77", _ALL, 2400, _of(32, 64, 2, base_dropout="off")
    ),
    "MiniLM, IMDb 256, LoRA q+v": Run("minilm", "imdb", "lora", 500, _of(16, 256, 1)),
    "MiniLM, IMDb 128, full, padded": Run(
        "minilm", "imdb", "full", 500, _of(8, 128, 1, packing="off")
    ),
    "MiniLM, SMS, head": Run("minilm", "sms_spam", "head", 800, _of(8, 128, 10)),
    "MiniLM, Banking77, last block": Run("minilm", "banking77", "last-block", 2400, _of(16, 64, 4)),
    "MiniLM, SMS, full": Run("minilm", "sms_spam", "full", 800, _of(16, 128, 2)),
    "MiniLM, Banking77, DoRA": Run(
        "minilm", "banking77", "dora", 1600, _of(16, 64, 2, accumulation=2)
    ),
    "SmolLM2, SMS, LoRA all": Run("smollm2", "sms_spam", _ALL, 320, _of(8, 128, 1)),
    "SmolLM2, SMS, head": Run("smollm2", "sms_spam", "head", 320, _of(16, 128, 5)),
    "BERT-base, SMS, LoRA q+v": Run("bert-base", "sms_spam", "lora", 400, _of(16, 128, 1)),
    "BERT-base, Banking77, full": Run("bert-base", "banking77", "full", 480, _of(32, 64, 1)),
}


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="do the runs whose names hold this")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    default = Path(__file__).parent / "results" / "estimating"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--table", action="store_true", help="print what is kept as Markdown")
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to run anything")
        facts = machine(options.threads)
        os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        runs = {name: run for name, run in RUNS.items() if options.only in name}
        for name, number in missing(options.output, runs, options.rounds, facts):
            pair = one_pair(RUNS[name], options.data, facts)
            write_json_atomically(path_of(options.output, name, number), pair)
            print(name, json.dumps({key: error(pair, key) for key in FIGURES}))
    print(text_of({name: read_pairs(options.output, name) for name in RUNS}))


def one_pair(run: Run, data: Path, facts: dict[str, Any]) -> Pair:
    """Estimate a run, do it, and return what both said."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        model = location_of(run.model, Path(temporary))
        pair = {
            side: in_another_process(of, run, model, data, facts["threads"])
            for side, of in (("estimate", estimated), ("run", done))
        }
    return {
        "machine": facts,
        "work": described(run),
        **pair,
        "wall_seconds": time.monotonic() - began,
    }


def estimated(run: Run, model: str, data: Path, threads: int) -> dict[str, Any]:
    """Return what a run is expected to take, each time as its likeliest, low and high."""
    from deltafit.training.estimating import estimate_of
    from deltafit.training.trial import try_run

    config, began = config_of(run, model, data, threads), time.perf_counter()
    found = estimate_of(try_run(config), [config])
    return {
        "took": time.perf_counter() - began,
        "memory": found.memory,
        "foretold": sum(found.foretold.values()),
        **{name: asdict(getattr(found, name)) for name in ("training", "whole", "epoch")},
        "parts": {name: asdict(span) for name, span in found.parts.items()},
        "parameters": [found.trainable, found.total],
    }


def done(run: Run, model: str, data: Path, threads: int) -> dict[str, Any]:
    """Return what a run takes."""
    from deltafit.training.train import train

    config, began = config_of(run, model, data, threads), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        costs = train(
            model, config.data, Path(folder) / "run", method=config.method,
            settings=config.settings,
        ).metrics["costs"]  # fmt: skip
    return {
        "memory": costs["peak_memory_bytes"],
        "training": costs["training_seconds"],
        "whole": time.perf_counter() - began,
        "parameters": [costs["trainable_parameters"], costs["total_parameters"]],
    }


def config_of(run: Run, model: str, data: Path, threads: int) -> Any:
    """Return a run as deltafit describes it, a fifth of its rows held out."""
    import torch

    from deltafit import DataConfig, TrainingSettings
    from deltafit.methods import parse_method
    from deltafit.training.config import RunConfig

    torch.set_num_threads(threads)
    folder = data / run.data
    place = str(folder / "train.csv") if folder.is_dir() else run.data
    return RunConfig(
        model, DataConfig(place, validation="0.2", limit=run.rows), parse_method(run.method),
        settings=TrainingSettings(**run.settings),
    )  # fmt: skip


def error(pair: Pair, figure: str) -> float:
    """Return how far an estimate is off, as a share of what the run took."""
    said = pair["estimate"][figure]
    likeliest = said["seconds"] if isinstance(said, dict) else said
    return float(likeliest / pair["run"][figure] - 1)


def text_of(kept: dict[str, list[Pair]]) -> str:
    """Return the table of what is kept, and what is to be known of it, as Markdown."""
    pairs = {name: each for name, each in kept.items() if each}
    if not pairs:
        return "Nothing is kept yet."
    rows = [_cells(name, each) for name, each in pairs.items()]
    columns = (
        *("run", "memory MB", "measured", "error", "by structure alone", "training s", "measured"),
        *("error", "whole run s", "measured", "error", "the estimate took s"),
    )
    every = [pair for each in pairs.values() for pair in each]
    bars = {"memory": MEMORY_BAR, "training": TIME_BAR, "whole": TIME_BAR}
    notes = []
    for figure, bar in bars.items():
        errors = [abs(error(pair, figure)) for pair in every]
        within = sum(each <= bar for each in errors)
        notes.append(
            f"{figure}: within {bar:.0%} in {within} of {len(every)}; off by {median(errors):.0%} "
            f"in the median, {max(errors):.0%} at most."
        )
    inside = sum(
        pair["estimate"]["training"]["low"] <= pair["run"]["training"]
        <= pair["estimate"]["training"]["high"] for pair in every
    )  # fmt: skip
    notes.append(f"The training time was within the range in {inside} of {len(every)}.")
    exact = all(pair["estimate"]["parameters"] == pair["run"]["parameters"] for pair in every)
    notes.append(f"Parameters were {'all' if exact else 'NOT all'} exact.")
    return "\n".join([*markdown_table(columns, rows, words=1), "", *(f"- {n}" for n in notes)])


def _cells(name: str, pairs: list[Pair]) -> list[str]:
    """Return a row: medians over its rounds."""

    def middle(side: str, figure: str) -> float:
        found = [pair[side][figure] for pair in pairs]
        return median(each["seconds"] if isinstance(each, dict) else each for each in found)

    def off(figure: str) -> str:
        return f"{median(error(pair, figure) for pair in pairs):+.0%}"

    low, high = (
        median(pair["estimate"]["training"][end] for pair in pairs) for end in ("low", "high")
    )
    structure = median(p["estimate"]["foretold"] / p["run"]["memory"] - 1 for p in pairs)
    return [
        name,
        f"{middle('estimate', 'memory') / 1e6:.0f}",
        f"{middle('run', 'memory') / 1e6:.0f}",
        off("memory"),
        f"{structure:+.0%}",
        f"{middle('estimate', 'training'):.1f} ({low:.1f} to {high:.1f})",
        f"{middle('run', 'training'):.1f}",
        off("training"),
        f"{middle('estimate', 'whole'):.1f}",
        f"{middle('run', 'whole'):.1f}",
        off("whole"),
        f"{middle('estimate', 'took'):.0f}",
    ]


if __name__ == "__main__":
    main()
