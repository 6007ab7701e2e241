"""deltafit's side of a training work: its loop, as its commands run it."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from deltafit.adapters import adapt
from deltafit.data import epoch_order, resolve_model
from deltafit.engine import find_keys_and_values
from deltafit.methods import Full, parse_method
from deltafit.tasks.classification import Classifier, HeadSettings, batch_of, load_classifier
from deltafit.tasks.inference import compute_logits, tokenise_for
from deltafit.training.constant import constant_batches
from deltafit.training.course import Course, Examples
from deltafit.training.loop import TrainingLoop
from deltafit.training.progress import Silent
from deltafit.training.settings import TrainingSettings
from measuring import Training, memory
from roofline import Product, products_of, training_seconds
from works import FLOAT32, HELD_OUT, OURS, WARM_UP, WITHOUT_DROPOUT, Work


class Clock(Silent):
    """Notes when the loop was made, when training began, when each step ended, and its loss."""

    def __init__(self) -> None:
        self.made = self.began = 0.0
        self.moments: list[float] = []
        self.losses: list[float] = []

    def start(self, what: str, total: int | None, done: int) -> None:
        """Note when training itself begins."""
        if what.startswith("training"):  # a sweep's is "training 16 runs"
            self.begin()
            self.began = time.perf_counter()

    def begin(self) -> None:
        """Do what is to be done right before the first step."""

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Note the moment and the loss."""
        if loss is not None:  # of a training step
            self.moments.append(time.perf_counter())
            self.losses.append(loss)


def train(work: Work, side: str, model: str, splits: Any, folder: Path) -> Training:
    """Train a work with the loop, with the rival's optimiser and schedule."""
    clock = Clock()
    loop, held_out = loop_of(work, side, model, splits, folder, clock)
    loop.run()
    rows, settings, classifier = loop.train, loop.settings, loop.classifier
    peak, precision = memory(), loop.course.precision or ""
    tokens = tokens_of_steps(rows, settings)[: work.steps]
    # Right after the run and in its process, so that the machine is in the same mood.
    roofline = training_seconds(
        products_of_run(classifier, rows, loop.course), tokens[WARM_UP:], precision,
        texts=work.batch_size, kept=_tokens_of_kept(rows, settings) if loop.course.kept else None,
    )  # fmt: skip
    logits = compute_logits(classifier, held_out.rows[:HELD_OUT])
    return Training(
        clock.moments, tokens, clock.losses, precision_of(loop.course),
        accuracy=float((logits.argmax(1) == np.array(held_out.labels[:HELD_OUT])).mean()),
        peak=peak, ahead=clock.began - clock.made, replaces_work=bool(loop.course.kept),
        roofline=roofline,
    )  # fmt: skip


def precision_of(course: Course) -> str:
    """Return what a run's frozen products and its attention were computed in."""
    attention = course.attention_precision
    return f"{course.precision or ''}{f', attention {attention}' if attention else ''}"


def products_of_run(classifier: Classifier, rows: Examples, course: Course) -> list[Product]:
    """Return the products that the steps of a run need."""
    batch = batch_of(classifier, rows.rows[:2])
    reads = find_keys_and_values(classifier.model, batch) if course.first_tokens else None
    return products_of(classifier.model, batch, reads)


def loop_of(
    work: Work, side: str, model: str, splits: Any, folder: Path, clock: Clock
) -> tuple[TrainingLoop, Examples]:
    """Return a work's loop, which stops after its steps, and the rows to judge on."""
    classifier, parts = loaded(work, model, splits)
    rows, method = parts["train"], parse_method(work.method)
    keep_base = not isinstance(method, Full)
    adapt(classifier.model, method, head=classifier.head_parameters, keep_base=keep_base)
    clock.made = time.perf_counter()  # finding what is frozen is part of what comes ahead
    loop = TrainingLoop(
        classifier, rows, None, settings_of(work, len(rows), side),
        learning_rate=work.learning_rate, folder=folder / "checkpoints",
        reporter=clock, accelerator=Accelerator(),
    )  # fmt: skip
    # The rival stops there too, in the middle of an epoch: its schedule is as long.
    loop.total_steps = work.steps
    return loop, parts["validation"]


def settings_of(work: Work, rows: int, side: str = OURS) -> TrainingSettings:
    """Return the rival's settings, with as many epochs as the steps need."""
    return TrainingSettings(
        epochs=-(-work.steps // -(-rows // work.batch_size)),
        batch_size=work.batch_size, max_length=work.max_length,
        learning_rate=work.learning_rate, weight_decay=0.0, warmup=0.0,
        base_dropout="off" if side == WITHOUT_DROPOUT else "configured",
        precision="float32" if side == FLOAT32 else "auto",
    )  # fmt: skip


def loaded(work: Work, model: str, splits: Any) -> tuple[Classifier, dict[str, Examples]]:
    """Return the classifier without an adapter, and the rows of every part as its tokens."""
    classifier = load_classifier(
        resolve_model(model), splits.train.label_names, HeadSettings(), seed=0
    )
    return classifier, {
        name: Examples(tokenise_for(classifier, part.texts, work.max_length).input_ids, part.labels)
        for name, part in splits.parts().items()
    }


def tokens_of_steps(rows: Examples, settings: TrainingSettings) -> list[int]:
    """Return the real tokens of every step; an epoch's last one may be small."""
    return [
        sum(len(rows.rows[row]) for row in order[start : start + settings.batch_size])
        for epoch in range(settings.epochs)
        for order in [epoch_order(len(rows), settings.seed, epoch)]
        for start in range(0, len(rows), settings.batch_size)
    ]


def _tokens_of_kept(rows: Examples, settings: TrainingSettings) -> list[int]:
    """Return the real tokens of every pass in which constant states are computed."""
    lengths = [len(row) for row in rows.rows]
    return [sum(lengths[row] for row in batch) for batch in constant_batches(lengths, settings)]
