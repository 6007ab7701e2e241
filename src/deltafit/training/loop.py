"""The training loop: one for every method, on Accelerate."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from deltafit.adapters import keyed_seed
from deltafit.data import class_weights, epoch_order
from deltafit.errors import TrainingError, UsageError
from deltafit.tasks.classification import Classifier
from deltafit.tasks.metrics import find_metric
from deltafit.training.accelerator import seed_generators
from deltafit.training.checkpoints import (
    Checkpoint,
    load_best,
    restore,
    save_best,
    save_checkpoint,
)
from deltafit.training.constant import ConstantStates
from deltafit.training.course import Course, Examples
from deltafit.training.execution import fast_execution
from deltafit.training.gradients import (
    StepGradients,
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)
from deltafit.training.interruption import Interrupted, StopRequest, stop_requested
from deltafit.training.modes import TrainingModes
from deltafit.training.optimisation import make_optimiser, rate_factor, set_rates
from deltafit.training.progress import Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.validation import COLLAPSED, NotFiniteError, unwrap_forward, validate
from deltafit.training.watchdog import GradientWatchdog

_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_DIVERGED = 10.0  # times the loss of the first step, or of guessing


class TrainingLoop:
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
    ) -> None:
        if settings.patience is not None and validation is None:
            raise UsageError("Stopping early (patience) needs validation rows to judge by.")
        self.classifier, self.train, self.validation = classifier, train, validation
        self.settings, self.folder, self.reporter = settings, folder, reporter
        self.accelerator = accelerator
        self.course = Course()
        self._order_of_epoch: tuple[int, list[int]] = (-1, [])
        model = classifier.model.to(accelerator.device)
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        head = set(classifier.head_parameters)
        self.watchdog = GradientWatchdog(tuple(self.trainable), head)
        optimiser = make_optimiser(self.trainable, head, settings, learning_rate)
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        self.modes = TrainingModes(classifier, settings, train)
        trained = tuple(self.trainable)
        self.constant = ConstantStates(classifier, train, trained, settings, folder, reporter)
        weights = (
            class_weights(train.labels, len(classifier.label_names))
            if settings.class_weights == "balanced"
            else [1.0] * len(classifier.label_names)
        )
        self.class_weights = torch.tensor(weights, device=accelerator.device)
        self.gradients = StepGradients(
            self.model, classifier, train, settings, self.class_weights, accelerator, self.constant
        )
        self.rows_per_step = settings.batch_size * settings.accumulation
        self.steps_per_epoch = math.ceil(len(train) / self.rows_per_step)
        self.total_steps = settings.epochs * self.steps_per_epoch

    def run(self, checkpoint: Checkpoint | None = None) -> Course:
        """Train to the end, or until patience runs out, and put the best parameters back.

        Raises:
            TrainingError: the loss diverged, or a tensor is not being trained.
            Interrupted: the person asked to stop; a checkpoint was written.
        """
        if checkpoint is not None:
            self._resume(checkpoint)
        if self._is_keeping_of_use():
            self.constant.keep(self.course)
        fast = fast_execution(
            self.classifier, self.train, self.settings, self.course, self.constant, self.reporter,
            self.accelerator,
        )  # fmt: skip
        with fast, stop_requested() as asked:
            self.gradients.packed = bool(self.course.packed) or self.constant.whole
            self.reporter.start("training", self.total_steps, self.course.step)
            saved = time.monotonic()
            while self.course.step < self.total_steps and not self._out_of_patience():
                self._step()
                evaluated, stop = self._is_evaluation_due(), self._is_stop_due(asked)
                if evaluated:
                    self._evaluate()
                if stop or evaluated or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()
                    saved = time.monotonic()
                if stop:
                    raise Interrupted(
                        f"Stopped after step {self.course.step} of {self.total_steps}; a "
                        "checkpoint was written."
                    )
        if self.course.best_step is not None and self.course.best_step != self.course.step:
            load_best(self.folder, self.trainable)
        self._release()
        return self.course

    def _is_keeping_of_use(self) -> bool:
        # In one epoch nothing is computed twice, and each of several processes sees other rows.
        left = self.course.step < self.total_steps and not self._out_of_patience()
        return left and self.settings.epochs > 1 and self.accelerator.num_processes == 1

    def _resume(self, checkpoint: Checkpoint) -> None:
        restore(checkpoint, self.trainable, self.optimiser.optimizer)
        self.course = Course(**checkpoint.state["course"])
        self.watchdog.restore(checkpoint.state["watchdog"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def _is_stop_due(self, asked: StopRequest) -> bool:
        if self.course.step == self.total_steps:
            return False  # nothing is left to stop
        if self.accelerator.num_processes == 1:
            return asked()
        # All processes leave at the same step, or the others would wait for ever.
        flag = torch.tensor(float(asked()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "course": asdict(self.course),
            "watchdog": self.watchdog.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_checkpoint(
            self.folder, self.course.step, self.trainable, self.optimiser.optimizer, state
        )

    def _step(self) -> None:
        """Apply one optimiser step and count it."""
        began = time.perf_counter()
        course, settings = self.course, self.settings
        epoch, index = divmod(course.step, self.steps_per_epoch)
        order = self._order(epoch)
        rows = order[index * self.rows_per_step : (index + 1) * self.rows_per_step]
        self.modes.train(self.model)
        set_rates(
            self.optimiser.optimizer,
            rate_factor(course.step, self.total_steps, settings.schedule, settings.warmup),
        )
        # Keyed by step, not carried on: what dropout drops does not depend on a run having been
        # resumed, and no two processes drop the same.
        key = f"step {course.step} of process {self.accelerator.process_index}"
        seed_generators(keyed_seed(settings.seed, key), self.accelerator.device)
        loss = self.gradients.accumulate(rows)
        if not math.isfinite(loss):
            raise self._diverged(course.step + 1, "loss", loss)
        norm = self._clip()
        if math.isfinite(norm):
            # A text of one token gives attention nothing to choose from, and so no gradient.
            if max(len(self.train.rows[row]) for row in rows) > 1:
                self._watch()
        elif self.accelerator.scaler is None:
            raise self._diverged(course.step + 1, "gradient's norm", norm)
        # else fp16's scale was too high: the scaler leaves this step out and lowers it.
        self.optimiser.step()
        self.optimiser.zero_grad()
        course.count(len(rows), loss, time.perf_counter() - began)
        if course.running_loss > self._largest_loss():
            raise self._diverged(course.step, "mean loss of the last steps", course.running_loss)
        self.reporter.step(course.step, loss, course.examples / course.seconds)

    def _order(self, epoch: int) -> list[int]:
        if self._order_of_epoch[0] != epoch:
            order = epoch_order(len(self.train), self.settings.seed, epoch)
            self._order_of_epoch = (epoch, order)
        return self._order_of_epoch[1]

    def _clip(self) -> float:
        limit = self.settings.clip if self.settings.clip is not None else math.inf
        return float(self.accelerator.clip_grad_norm_(self.trainable.values(), limit))

    def _watch(self) -> None:
        if not self.watchdog.watching:
            return
        self.watchdog.look(self.trainable)
        if self.watchdog.outside:
            names = self.watchdog.outside
            self._note(
                f"{len(names)} tensors take no part in the model's output and are not trained: "
                f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}."
            )

    def _largest_loss(self) -> float:
        """Return the loss beyond which a run only wastes time: far above chance and the start."""
        chance = math.log(len(self.classifier.label_names))
        return _DIVERGED * max(self.course.first_loss or 0.0, chance)

    def _diverged(self, step: int, what: str, value: float) -> TrainingError:
        return TrainingError(
            f"diverged at step {step} of {self.total_steps}: the {what} became {value:.4g}. "
            "Lower --lr (a third is a good next try), or train in float32."
        )

    def _is_evaluation_due(self) -> bool:
        every = self.settings.evaluate_every or self.steps_per_epoch
        return self.course.step % every == 0 or self.course.step == self.total_steps

    def _evaluate(self) -> None:
        course = self.course
        entry: dict[str, Any] = {
            "step": course.step,
            "epoch": course.step / self.steps_per_epoch,
            "train_loss": course.loss_sum / course.loss_rows,
        }
        course.loss_sum, course.loss_rows = 0.0, 0
        if self.validation is not None:
            try:
                figures, collapsed = validate(
                    self.classifier, self.validation, self.class_weights, self.settings
                )
            except NotFiniteError as error:
                raise self._diverged(course.step, "logits of a validation row", math.nan) from error
            entry |= figures
            if collapsed:
                self.reporter.say(f"At step {course.step}, {COLLAPSED}")
        course.history.append(entry)
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
        self.accelerator.log(numbers, step=course.step)
        self._keep_best(entry)

    def _keep_best(self, entry: dict[str, Any]) -> None:
        if self.validation is None:
            return
        course, metric = self.course, find_metric(self.settings.metric)
        best = course.entry_of(course.best_step)
        sign = 1 if metric.higher_is_better else -1
        if best is None or sign * entry[metric.key] > sign * best[metric.key]:
            course.best_step, course.waited = course.step, 0
            if self.accelerator.is_main_process:
                save_best(self.folder, self.trainable)
        else:
            course.waited += 1

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.course.waited >= patience

    def _note(self, sentence: str) -> None:
        if sentence not in self.course.notes:
            self.course.notes.append(sentence)
            self.reporter.say(sentence)

    def _release(self) -> None:
        """Leave the model as it came: plain forward, no checkpointing, evaluation mode."""
        self.constant.release()
        unwrap_forward(self.classifier.model)
        if self.settings.gradient_checkpointing:
            disable_gradient_checkpointing(self.classifier.model)
        self.classifier.model.eval()
