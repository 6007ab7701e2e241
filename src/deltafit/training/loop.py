"""The training loop: one for every method, on Accelerate."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from deltafit.adapters import keyed_seed
from deltafit.engine import StateStores
from deltafit.errors import TrainingError
from deltafit.tasks.classification import Classifier
from deltafit.training.accelerator import seed_generators
from deltafit.training.checkpoints import Checkpoint
from deltafit.training.constant import ConstantStates
from deltafit.training.course import Course, Examples
from deltafit.training.execution import fast_execution, release
from deltafit.training.gradients import (
    StepGradients,
    enable_gradient_checkpointing,
)
from deltafit.training.interruption import Halted, Interrupted, StopRequest, stop_requested
from deltafit.training.learner import Learner
from deltafit.training.modes import TrainingModes
from deltafit.training.progress import Reporter
from deltafit.training.settings import TrainingSettings

SECONDS_BETWEEN_CHECKPOINTS = 60.0

Halt = Callable[[Sequence[Mapping[str, Any]]], bool]
"""Says from a run's evaluations so far, which grow from call to call, whether it is to halt."""


class TrainingLoop(Learner):
    """Trains the parameters that require gradients; everything else stays as it is.

    Args:
        classifier: adapted, on any device.
        train: rows to learn from.
        validation: rows that pick the best checkpoint; None keeps the last.
        settings: the hyperparameters.
        learning_rate: the highest rate of everything but the head.
        folder: for checkpoints.
        reporter: told how the work goes.
        accelerator: devices, precision and trackers.
        states: of frozen layers, shared with other runs; see `ConstantStates`.
        halt: asked after each evaluation but the last.
        checkpoint_every: seconds after which one is written, besides those of evaluations.

    Raises:
        UsageError: the settings need validation rows, or what the model does not offer.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        validation: Examples | None,
        settings: TrainingSettings,
        *,
        learning_rate: float,
        folder: Path,
        reporter: Reporter,
        accelerator: Accelerator,
        states: StateStores | None = None,
        halt: Halt | None = None,
        checkpoint_every: float = SECONDS_BETWEEN_CHECKPOINTS,
    ) -> None:
        self._halt = halt
        model = classifier.model.to(accelerator.device)
        super().__init__(
            classifier, train, validation, settings,
            trainable={n: p for n, p in model.named_parameters() if p.requires_grad},
            learning_rate=learning_rate, folder=folder, reporter=reporter, accelerator=accelerator,
        )  # fmt: skip
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.model, self.checkpoint_every = accelerator.prepare(model), checkpoint_every
        self.modes = TrainingModes(classifier, settings, train)
        trained = tuple(self.trainable)
        self.constant = ConstantStates(
            classifier, train, trained, settings, folder, reporter, states
        )
        self.gradients = StepGradients(
            self.model, classifier, train, settings, self.class_weights, accelerator, self.constant
        )

    def run(self, checkpoint: Checkpoint | None = None) -> Course:
        """Train to the end, or until patience runs out, and put the best parameters back.

        Raises:
            TrainingError: the loss diverged, or a tensor is not being trained.
            Interrupted: the person asked to stop; a checkpoint was written.
            Halted: ``halt`` said so; a checkpoint was written.
        """
        if checkpoint is not None:
            self.resume(checkpoint)
            if self.course.failure is not None:
                raise TrainingError(self.course.failure)
            self._halt_if_asked()
        if self._is_keeping_of_use():
            self.constant.keep(self.course)
        fast = fast_execution(
            self.classifier, self.train, self.settings, self.course, self.constant, self.reporter,
            self.accelerator,
        )  # fmt: skip
        with fast, stop_requested() as asked:
            fed = self.constant.whole and bool(self.course.kept)
            self.gradients.packed = bool(self.course.packed) or fed
            self.reporter.start("training", self.total_steps, self.course.step)
            saved = time.monotonic()
            while not self.finished:
                self._step()
                due, stop = self.evaluation_due, self._is_stop_due(asked)
                if due:
                    self.evaluate()
                if stop or due or time.monotonic() - saved > self.checkpoint_every:
                    self.save()
                    saved = time.monotonic()
                if due:
                    self._halt_if_asked()
                if stop:
                    raise Interrupted(
                        f"Stopped after step {self.course.step} of {self.total_steps}; a "
                        "checkpoint was written."
                    )
        self.put_best_back()
        release(self.classifier, self.settings, self.constant)
        return self.course

    def _halt_if_asked(self) -> None:
        if self._halt is not None and not self.finished and self._halt(self.course.history):
            raise Halted(f"Halted after step {self.course.step} of {self.total_steps}.")

    def _is_keeping_of_use(self) -> bool:
        # In one epoch nothing is computed twice, and each of several processes sees other rows.
        several = self.settings.epochs > 1 and not self.finished
        return several and self.accelerator.num_processes == 1

    def _is_stop_due(self, asked: StopRequest) -> bool:
        if self.course.step == self.total_steps:
            return False  # nothing is left to stop
        if self.accelerator.num_processes == 1:
            return asked()
        # All processes leave at the same step, or the others would wait for ever.
        flag = torch.tensor(float(asked()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

    def _step(self) -> None:
        """Apply one optimiser step and count it."""
        began = time.perf_counter()
        rows = self.begin_step()
        self.modes.train(self.model)
        # Keyed by step, not carried on: what dropout drops does not depend on a run having been
        # resumed, and no two processes drop the same.
        key = f"step {self.course.step} of process {self.accelerator.process_index}"
        seed_generators(keyed_seed(self.settings.seed, key), self.accelerator.device)
        loss = self.gradients.accumulate(rows)
        self.apply(rows, loss, time.perf_counter() - began)
