"""The steps of a trial: arranged so that the ordinary loop takes them, timed, and left in time."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator

from deltafit.data import epoch_order
from deltafit.training.accelerator import make_accelerator, mixed_precision_of
from deltafit.training.config import RunConfig
from deltafit.training.cost_law import CostLaw, Work, added
from deltafit.training.course import Examples
from deltafit.training.passes import steps_of
from deltafit.training.progress import Silent
from deltafit.training.settings import TrainingSettings
from deltafit.training.workload import chosen_steps, step_work

STEPS = 10
"""How many optimiser steps are timed."""

STILL = 1e-6
"""The learning rate: steps cost the same wherever they lead, and these lead nowhere."""

_MOST_SECONDS = 45.0  # after which no further step is begun
_LEAST_STEPS = 3  # that are timed, however long they take


class _EnoughError(Exception):
    """All the steps that were wanted are done."""


@dataclass
class Clock(Silent):
    """Times whoever tells it of work, and ends training after some steps.

    Args:
        unmeasured: steps to warm up on.
        wanted: steps in all.

    Attributes:
        seconds: of each step of each kind of work, by its name; of training under "training".
        began: when each kind of work began.
    """

    unmeasured: int
    wanted: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    _what: str = ""
    _last: float = 0.0

    def start(self, what: str, total: int | None, done: int) -> None:
        """Begin a kind of work."""
        self._what = "training" if what.startswith("training") else what
        self._last = self.began[self._what] = time.perf_counter()

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Note what a step took.

        Raises:
            _EnoughError: no more steps of training are wanted, or they take too long.
        """
        now = time.perf_counter()
        times = self.seconds.setdefault(self._what, [])
        times.append(now - self._last)
        if self._what == "training":
            late = now - self.began["training"] > _MOST_SECONDS
            least = min(self.wanted, self.unmeasured + _LEAST_STEPS)
            if len(times) >= (least if late else self.wanted):
                raise _EnoughError
        self._last = time.perf_counter()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the block when all steps are done that were wanted."""
        with suppress(_EnoughError):
            yield


@dataclass(frozen=True)
class Arranged:
    """Training rows that an ordinary loop takes in just the steps that are wanted.

    Attributes:
        examples: the rows.
        settings: of the run, as far as they matter in so few steps.
        unmeasured: steps to warm up on.
        wanted: steps in all.
    """

    examples: Examples
    settings: TrainingSettings
    unmeasured: int
    wanted: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.examples.rows]

    def works(self, seeds: Sequence[int], *, packed: bool, longer: int) -> list[Work]:
        """Return the work of each step, done for all seeds at once."""
        lengths, result = self.lengths, []
        every = [replace(self.settings, seed=seed) for seed in seeds]
        for steps in zip(*(steps_of(len(lengths), each, 0) for each in every), strict=True):
            _, tokens, squares = added(
                step_work(rows, lengths, self.settings, packed=packed, longer=longer)
                for rows in steps
            )
            result.append((1.0, tokens, squares))
        return result

    def law(self, clock: Clock, works: Sequence[Work]) -> tuple[CostLaw, int]:
        """Return the law of the steps that were timed, and how many those are."""
        times = clock.seconds["training"][self.unmeasured :]
        return CostLaw.fitted(works[self.unmeasured :][: len(times)], times), len(times)


def arranged(
    train: Examples,
    settings: TrainingSettings,
    cuts: Sequence[int],
    *,
    packed: bool,
    twice: bool,
) -> Arranged:
    """Arrange a fair sample of a run's steps.

    Args:
        train: its training rows.
        settings: its settings.
        cuts: tokens that the rows of timed steps are cut to, in turn.
        packed: whether it runs without padding.
        twice: warm up on the very steps that are timed: kernels are compiled for their shapes.
    """
    lengths = [len(row) for row in train.rows]
    warm_up, timed = chosen_steps(lengths, settings, STEPS, packed=packed)
    cut = [cuts[number % len(cuts)] for number in range(len(timed))]
    limits = [max(lengths)] * len(warm_up) + cut * (2 if twice else 1)
    steps = [*warm_up, *(timed if twice else []), *timed]
    size = len(steps[0])
    if size < settings.rows_per_step:  # there are fewer rows than a step takes
        settings = replace(settings, batch_size=size, accumulation=1)
    order = epoch_order(len(steps) * size, settings.seed, 0)
    rows: list[Sequence[int]] = [()] * len(order)
    labels = [0] * len(order)
    flat = ((row, limit) for step, limit in zip(steps, limits, strict=True) for row in step)
    for place, (row, limit) in zip(order, flat, strict=True):
        rows[place], labels[place] = train.rows[row][:limit], train.labels[row]
    settings = replace(
        settings,
        # A second epoch is what states of frozen layers are kept for; no trial comes so far.
        epochs=min(settings.epochs, 2),
        class_weights="none", evaluate_every=None, patience=None,
    )  # fmt: skip
    return Arranged(
        Examples(rows, labels), settings, len(steps) - len(timed), len(steps)
    )  # fmt: skip


@contextmanager
def started(config: RunConfig) -> Iterator[tuple[Accelerator, Path]]:
    """Give a trial's Accelerator, and a folder that is not there, and is gone afterwards."""
    folder = Path(tempfile.gettempdir()) / f"deltafit-{uuid.uuid4().hex}"
    mixed = mixed_precision_of(config.settings.precision, config.method)
    try:
        yield make_accelerator(mixed), folder
    finally:
        # States of frozen layers that no memory holds, or a checkpoint after Ctrl-C.
        shutil.rmtree(folder, ignore_errors=True)
