"""Sixteen runs of a sweep over LoRA's rank and α: joined, one after another, and by PEFT."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from accelerate import Accelerator

import ours
import rivals
from deltafit.adapters import activate, adapt
from deltafit.methods import LoRA
from deltafit.tasks.inference import compute_logits
from deltafit.training.course import Examples
from deltafit.training.joined import JoinedLoop, JoinedRun
from measuring import Training, memory
from roofline import training_seconds
from works import FLOAT32, HELD_OUT, OURS, TRAINER, WARM_UP, Work

METHODS = tuple(
    LoRA(rank=rank, alpha=alpha, target_modules=("query", "value"))
    for rank in (4, 8, 16, 32)
    for alpha in (8, 16, 32, 64)
)


def train(work: Work, side: str, model: str, splits: Any, folder: Path) -> Training:
    """Train every run of the sweep for ``work.steps`` steps."""
    if side in (OURS, FLOAT32):
        return _joined(work, side, model, splits, folder)
    alone = rivals.train if side == TRAINER else ours.train
    return combined(
        [
            alone(replace(work, method=str(method)), side, model, splits, folder / str(number))
            for number, method in enumerate(METHODS)
        ]
    )


def combined(runs: Sequence[Training]) -> Training:
    """Return runs that came one after another as if each step had been one of all of them.

    Seconds and tokens add up; the loss and the accuracy are those of a run in the mean.
    """
    rooflines = [run.roofline for run in runs if run.roofline is not None]
    return Training(
        moments=[sum(each) for each in zip(*(run.moments for run in runs), strict=True)],
        # The Trainer's collator may have prepared a batch more than it used.
        tokens=[sum(each) for each in zip(*(run.tokens for run in runs), strict=False)],
        losses=[mean(each) for each in zip(*(run.losses for run in runs), strict=True)],
        precision=runs[0].precision,
        accuracy=mean(run.accuracy for run in runs),
        peak=max(run.peak for run in runs),
        ahead=sum(run.ahead for run in runs),
        roofline=sum(rooflines) if rooflines else None,
    )


def _joined(work: Work, side: str, model: str, splits: Any, folder: Path) -> Training:
    clock = ours.Clock()
    loop, held_out = loop_of(work, side, model, splits, folder, clock)
    failures = loop.run({})
    if failures:
        raise RuntimeError(f"Runs failed: {failures}")
    classifier, rows = loop.classifier, loop.gradients.train
    first = loop.learners["run0"]
    peak, precision = memory(), first.course.precision or ""
    # Every run has the same seed, and so the same rows in every step.
    each = ours.tokens_of_steps(rows, first.settings)[: work.steps]
    tokens = [len(METHODS) * count for count in each]
    roofline = training_seconds(
        ours.products_of_run(classifier, rows, first.course), tokens[WARM_UP:], precision,
        texts=len(METHODS) * work.batch_size,
    )  # fmt: skip
    labels, right = np.array(held_out.labels[:HELD_OUT]), []
    for name in loop.learners:
        activate(classifier.model, name)
        logits = compute_logits(classifier, held_out.rows[:HELD_OUT])
        right.append(float((logits.argmax(1) == labels).mean()))
    return Training(
        clock.moments, tokens, clock.losses, ours.precision_of(first.course),
        accuracy=mean(right), peak=peak, ahead=clock.began - clock.made, roofline=roofline,
    )  # fmt: skip


def loop_of(
    work: Work, side: str, model: str, splits: Any, folder: Path, clock: ours.Clock
) -> tuple[JoinedLoop, Examples]:
    """Return the loop of all runs of the sweep, and the rows to judge on."""
    classifier, parts = ours.loaded(work, model, splits)
    settings = ours.settings_of(work, len(parts["train"]), side)
    head = {n: classifier.model.get_parameter(n).detach() for n in classifier.head_parameters}
    runs = {f"run{number}": method for number, method in enumerate(METHODS)}
    for name, method in runs.items():
        adapt(
            classifier.model, method, name=name, head=classifier.head_parameters,
            initial={n: value.clone() for n, value in head.items()},
        )  # fmt: skip
    joined = {
        name: JoinedRun(settings, work.learning_rate, folder / name, str(method))
        for name, method in runs.items()
    }
    clock.made = time.perf_counter()
    loop = JoinedLoop(
        classifier, parts["train"], None, joined, reporter=clock, accelerator=Accelerator()
    )
    for learner in loop.learners.values():
        learner.total_steps = work.steps  # as the rival's: in the middle of an epoch
    return loop, parts["validation"]
