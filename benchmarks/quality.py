"""How good are the classifiers? Banking77 and SMS spam, against PEFT and against cheap baselines.

    python benchmarks/quality.py --data DATA [--output FOLDER] [--only PART] [--threads N]

DATA holds ``banking77/{train,test}.csv`` and ``sms_spam/{train,val,test}.csv``. Every run is kept
as JSON under the output folder (benchmarks/results/quality); a call does what is missing and then
prints the table, so it can be stopped and continued, and several calls with ``--only`` can share
the work. Settings are chosen
on a validation part (a stratified 20 % of the training rows); the test part is looked at once, by
runs on all training rows, without choosing a checkpoint.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import rivals
from deltafit.data import load_splits
from deltafit.experiments.baselines import tfidf_svm
from deltafit.experiments.statistics import mean_accuracy_interval
from deltafit.experiments.together import paired_over_seeds
from deltafit.files import read_json, read_tensors, write_json_atomically
from deltafit.methods import LoRA
from deltafit.prediction.folder import versions
from deltafit.training.features import FrozenFeatures
from deltafit.training.progress import ConsoleReporter
from deltafit.training.results import PREDICTIONS_FILE
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import train

ALL_LINEAR = LoRA(rank=8, alpha=16, target_modules="all-linear")
# PEFT + Trainer as people run it: their defaults for everything not named.
AS_PEFT = TrainingSettings(
    epochs=5, batch_size=32, learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0.0,
    warmup=0.0, max_length=128,
)  # fmt: skip
POOLED = HeadConfig("mean", "probe", 0.2)
TUNED = TrainingSettings(
    epochs=5, batch_size=32, learning_rate=2e-3, label_smoothing=0.1, max_length=128
)
# What the validation part chooses among, for the pooled head.
CANDIDATES = {
    "lr 2e-3": TUNED,
    "lr 1e-3": replace(TUNED, learning_rate=1e-3),
}
SEEDS = (0, 1, 2)
SMOL = TrainingSettings(
    epochs=2, batch_size=8, learning_rate=5e-4, head_learning_rate=5e-4, max_length=64
)

Job = Callable[[], dict[str, Any]]


class Bench:
    """The runs, each a job that gives the record to keep."""

    def __init__(self, data: Path, output: Path, console: Console) -> None:
        self.data, self.output, self.console = data, output, console
        self.banking = str(data / "banking77")
        self.jobs: dict[str, Job] = {}
        for name in CANDIDATES:
            self.jobs[f"choose/{name}"] = lambda name=name: self._choose(name)
        self.jobs["banking77/frozen probe"] = self._frozen_probe
        self.jobs["banking77/TF-IDF + SVM"] = lambda: self._tfidf("banking77")
        self.jobs["banking77/PEFT + Trainer, architecture's head/0"] = self._peft
        for seed in SEEDS:
            self.jobs[f"banking77/deltafit, architecture's head/{seed}"] = lambda seed=seed: (
                self._banking(HeadConfig(), replace(AS_PEFT, seed=seed))
            )
        for candidate, settings in CANDIDATES.items():
            for seed in SEEDS:
                self.jobs[pooled_name(candidate, seed)] = lambda seed=seed, settings=settings: (
                    self._banking(POOLED, replace(settings, seed=seed))
                )
        self.jobs["sms_spam/TF-IDF + SVM"] = lambda: self._tfidf("sms_spam")
        self.jobs["sms_spam/deltafit, SmolLM2, LoRA/0"] = self._smol

    def path(self, name: str) -> Path:
        """Return where a run's record is kept."""
        return self.output / (name.replace("/", "--").replace(" ", "-") + ".json")

    def record(self, name: str) -> dict[str, Any] | None:
        """Return a finished run's record."""
        path = self.path(name)
        return read_json(path) if path.is_file() else None

    def run(self, only: str) -> None:
        """Do what is missing: everything, or the runs whose names hold ``only``."""
        for name, job in self.jobs.items():
            if only not in name or self.record(name) is not None:
                continue
            if not only and name in self._not_chosen():
                continue  # its settings lost on the validation part
            self.console.print(name, markup=False)
            began = time.perf_counter()
            result = job()
            result |= {"wall_seconds": time.perf_counter() - began}
            result |= {"threads": torch.get_num_threads(), "versions": versions()}
            write_json_atomically(self.path(name), result)

    def _train(
        self, model: str, data: DataConfig, head: HeadConfig, settings: TrainingSettings, part: str
    ) -> dict[str, Any]:
        folder = self.output / f"working-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        reporter = ConsoleReporter(self.console)
        with reporter.shown():
            result = train(
                model, data, folder,
                method=ALL_LINEAR, head=head, settings=settings, reporter=reporter,
            )  # fmt: skip
        tensors = read_tensors(folder / PREDICTIONS_FILE)
        correct = tensors[f"{part}/logits"].argmax(1) == tensors[f"{part}/labels"]
        shutil.rmtree(folder)
        return {
            "correct": correct.int().tolist(),
            "macro_f1": result.metrics["after"][part]["macro_f1"],
            "costs": result.metrics["costs"],
            "environment": result.metrics["environment"],
            "history": result.metrics["history"],
        }

    def _choose(self, name: str) -> dict[str, Any]:
        data = DataConfig(f"{self.banking}/train.csv", validation="0.2")
        return self._train("minilm", data, POOLED, CANDIDATES[name], "validation")

    def _not_chosen(self) -> set[str]:
        """Return the runs whose settings did not do best on the validation part."""
        records = {name: self.record(f"choose/{name}") for name in CANDIDATES}
        scores = {name: accuracy(record) for name, record in records.items() if record}
        best = max(scores, key=scores.__getitem__, default=None)
        return {pooled_name(name, seed) for name in CANDIDATES if name != best for seed in SEEDS}

    def _banking(self, head: HeadConfig, settings: TrainingSettings) -> dict[str, Any]:
        data = DataConfig(
            f"{self.banking}/train.csv", f"{self.banking}/test.csv", validation="none"
        )
        return self._train("minilm", data, head, settings, "test")

    def _smol(self) -> dict[str, Any]:
        parts = self.data / "sms_spam"
        data = DataConfig(
            str(parts / "train.csv"), str(parts / "test.csv"), validation=str(parts / "val.csv")
        )
        return self._train("smollm2", data, HeadConfig(), SMOL, "test")

    def _frozen_probe(self) -> dict[str, Any]:
        splits = load_splits(self.banking, validation="0.2")
        reporter = ConsoleReporter(self.console)
        features = FrozenFeatures("minilm", splits, 128, reporter)
        with reporter.shown():
            probe = features.probe("mean")
            from deltafit.tasks.probe import logistic_probe

            everything = [features.features[name]["mean"] for name in ("train", "validation")]
            labels = [*splits.train.labels, *splits.parts()["validation"].labels]
            # The penalty was chosen on the validation part; the fit then has all training rows.
            final = logistic_probe(
                np.concatenate(everything), np.array(labels),
                classes=len(splits.train.label_names), c_grid=(probe.C,),
            )  # fmt: skip
        logits = final.logits(features.features["test"]["mean"])
        correct = logits.argmax(1) == np.array(splits.parts()["test"].labels)
        return {"correct": correct.astype(int).tolist(), "C": probe.C}

    def _tfidf(self, folder: str) -> dict[str, Any]:
        parts = self.data / folder
        splits = load_splits(parts / "train.csv", test_data=parts / "test.csv", validation="none")
        test = splits.parts()["test"]
        scores = tfidf_svm(
            splits.train.texts, splits.train.labels, test.texts,
            num_classes=len(test.label_names), seed=0,
        ).scores  # fmt: skip
        return {"correct": (scores.argmax(1) == np.array(test.labels)).astype(int).tolist()}

    def _peft(self) -> dict[str, Any]:
        return peft_and_trainer(self.banking, self.output / f"working-{os.getpid()}")


def peft_and_trainer(banking: str, folder: Path) -> dict[str, Any]:
    """Train the rival on all training rows and judge it on the test part."""
    splits = load_splits(f"{banking}/train.csv", test_data=f"{banking}/test.csv", validation="none")
    tokenizer, network = rivals.load("minilm", len(splits.train.label_names))
    test = splits.parts()["test"]
    trainer = rivals.make_trainer(
        rivals.restricted(network, "lora:target_modules=all-linear"),
        rivals.rows_of(tokenizer, splits.train, AS_PEFT.max_length),
        folder, rivals.Counting(tokenizer),
        num_train_epochs=AS_PEFT.epochs, per_device_train_batch_size=AS_PEFT.batch_size,
        learning_rate=AS_PEFT.learning_rate, logging_strategy="epoch",
    )  # fmt: skip
    result = trainer.train()
    correct = rivals.correct(trainer, rivals.rows_of(tokenizer, test, AS_PEFT.max_length))
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "correct": correct.astype(int).tolist(),
        "training_seconds": result.metrics["train_runtime"],
        "history": trainer.state.log_history,
    }


def pooled_name(candidate: str, seed: int) -> str:
    """Return the name of a run of the pooled head on the test part."""
    return f"banking77/deltafit, mean pooling from a probe, {candidate}/{seed}"


def accuracy(record: dict[str, Any]) -> float:
    """Return the share of rows a run got right."""
    return float(np.mean(record["correct"]))


def show(bench: Bench, console: Console) -> dict[str, Any]:
    """Print what is finished; return it as plain values."""
    groups: dict[str, list[np.ndarray]] = {}
    for name in bench.jobs:
        record = bench.record(name)
        if record is not None:
            whole, _, last = name.rpartition("/")
            group = whole if last.isdigit() else name  # of the seeds of one setting
            groups.setdefault(group, []).append(np.array(record["correct"], dtype=bool))
    against = {"banking77": "banking77/frozen probe", "sms_spam": "sms_spam/TF-IDF + SVM"}
    rival = "banking77/PEFT + Trainer, architecture's head"
    table = Table(title="Accuracy, and its paired difference in points (95 % interval)")
    for title in ("run", "seeds", "accuracy", "95 %", "against the baseline", "against PEFT"):
        table.add_column(title, justify="left" if title == "run" else "right")
    summary: dict[str, Any] = {}
    for group, runs in groups.items():
        correct = np.stack(runs)
        low, high = mean_accuracy_interval(correct)
        cells = []
        data = group.partition("/")[0]
        for other in (against.get(data, ""), rival):
            known = other in groups and other != group and other.startswith(f"{data}/")
            cells.append(_difference(correct, np.stack(groups[other])) if known else "")
        table.add_row(
            group, str(len(runs)), f"{correct.mean():.4f}", f"{low:.3f}–{high:.3f}", *cells
        )
        summary[group] = {"accuracy": [float(c.mean()) for c in runs], "differences": cells}
    console.print(table)
    return summary


def _difference(correct: np.ndarray, other: np.ndarray) -> str:
    paired = paired_over_seeds(correct, other)
    points = (100 * value for value in (paired.difference, paired.low, paired.high))
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*points)


def main() -> None:
    """Do what is missing, print the table and one last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality"))
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    bench = Bench(arguments.data, arguments.output, console)
    bench.run(arguments.only)
    print(json.dumps(show(bench, console)))


if __name__ == "__main__":
    main()
