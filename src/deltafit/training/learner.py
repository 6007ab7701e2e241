"""What one run learns: its steps, given their gradients, its evaluations and its checkpoints."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltafit.adapters import frozen_tensors, model_adapters, rate_factors, step_hook
from deltafit.errors import TrainingError, UsageError
from deltafit.tasks.classification import Classifier
from deltafit.tasks.metrics import find_metric
from deltafit.training.checkpoints import (
    Checkpoint,
    load_best,
    restore,
    save_best,
    save_checkpoint,
)
from deltafit.training.course import Course, Examples
from deltafit.training.gradients import loss_weights
from deltafit.training.optimisation import make_optimiser, rate_factor, set_rates
from deltafit.training.passes import steps_of
from deltafit.training.progress import Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.tracking import numbers_in
from deltafit.training.validation import (
    COLLAPSED,
    NOTHING_TO_WAIT_FOR,
    NotFiniteError,
    validate,
)
from deltafit.training.watchdog import GradientWatchdog

_DIVERGED = 10.0  # times the loss of the first step, or of guessing


class Learner:
    """The parameters that one run trains, and all that happens to them but their gradients.

    A step is: ``begin_step`` gives its rows, somebody adds the gradient of their mean loss to the
    parameters, ``apply`` makes the step. Who computes gradients, alone or for several runs at
    once, is no matter here.

    Args:
        classifier: adapted, on any device.
        train: rows to learn from.
        validation: rows that pick the best checkpoint; None keeps the last.
        settings: the hyperparameters.
        trainable: what is trained, by the names that checkpoints give it.
        learning_rate: the highest rate of everything but the head.
        folder: for checkpoints.
        reporter: told how the work goes.
        accelerator: devices, precision and trackers.

    Raises:
        UsageError: the settings need validation rows.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        validation: Examples | None,
        settings: TrainingSettings,
        *,
        trainable: Mapping[str, nn.Parameter],
        learning_rate: float,
        folder: Path,
        reporter: Reporter,
        accelerator: Accelerator,
    ) -> None:
        if settings.patience is not None and validation is None:
            raise UsageError(NOTHING_TO_WAIT_FOR)
        self.classifier, self.train, self.validation = classifier, train, validation
        self.settings, self.folder, self.reporter = settings, folder, reporter
        self.accelerator, self.trainable = accelerator, dict(trainable)
        self.course = Course()
        self._steps_of_epoch: tuple[int, list[list[int]]] = (-1, [])
        head = set(classifier.head_parameters)
        self.watchdog = GradientWatchdog(tuple(self.trainable), head)
        factors = rate_factors(classifier.model)
        optimiser = make_optimiser(self.trainable, head, settings, learning_rate, factors)
        self.optimiser = accelerator.prepare(optimiser)
        weights = loss_weights(train, settings, len(classifier.label_names))
        self.class_weights = weights.to(accelerator.device)
        self.steps_per_epoch = math.ceil(len(train) / settings.rows_per_step)
        self.total_steps = settings.epochs * self.steps_per_epoch
        active = model_adapters(classifier.model).active
        self.hook = step_hook(classifier.model, active, self.total_steps) if active else None
        self._frozen = frozen_tensors(classifier.model, active) if active else {}

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or patience has run out."""
        return self.course.step >= self.total_steps or self._out_of_patience()

    def begin_step(self) -> list[int]:
        """Set the learning rates of the next step; return its rows."""
        course, settings = self.course, self.settings
        set_rates(
            self.optimiser.optimizer,
            rate_factor(course.step, self.total_steps, settings.schedule, settings.warmup),
        )
        epoch, index = divmod(course.step, self.steps_per_epoch)
        if self._steps_of_epoch[0] != epoch:
            self._steps_of_epoch = (epoch, steps_of(len(self.train), settings, epoch))
        return self._steps_of_epoch[1][index]

    def apply(self, rows: list[int], loss: float, seconds: float) -> None:
        """Apply the step whose gradient the parameters hold, and count it.

        Args:
            rows: of the step.
            loss: their mean loss.
            seconds: what the gradient took.

        Raises:
            TrainingError: the loss diverged, or a tensor is not being trained.
        """
        began, course = time.perf_counter(), self.course
        if not math.isfinite(loss):
            raise self._diverged(course.step + 1, "loss", loss)
        self._penalise()
        norm = self._clip()
        if math.isfinite(norm):
            # A text of one token gives attention nothing to choose from, and so no gradient.
            if max(len(self.train.rows[row]) for row in rows) > 1:
                self._watch()
        elif self.accelerator.scaler is None:
            raise self._diverged(course.step + 1, "gradient's norm", norm)
        # else fp16's scale was too high: the scaler leaves this step out and lowers it.
        self.optimiser.step()
        if self.hook is not None:
            self.hook.after_step(course.step + 1)
        self.optimiser.zero_grad()
        course.count(len(rows), loss, seconds + time.perf_counter() - began)
        if course.running_loss > self._largest_loss():
            raise self._diverged(course.step, "mean loss of the last steps", course.running_loss)
        self.reporter.step(course.step, loss, course.examples / course.seconds)

    @property
    def evaluation_due(self) -> bool:
        """Whether the step just applied is one to evaluate after."""
        every = self.settings.evaluate_every or self.steps_per_epoch
        return self.course.step % every == 0 or self.course.step == self.total_steps

    def evaluate(self) -> None:
        """Enter an evaluation into the history, and keep the parameters if it is the best.

        Raises:
            TrainingError: a validation row's logits are not finite.
        """
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
        self.accelerator.log(numbers_in(entry), step=course.step)
        self._keep_best(entry)

    def save(self) -> None:
        """Write a checkpoint."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "course": asdict(self.course),
            "watchdog": self.watchdog.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_checkpoint(
            self.folder, self.course.step, self.trainable, self.optimiser.optimizer, state,
            self._of_method,
        )  # fmt: skip

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        restore(checkpoint, self.trainable, self.optimiser.optimizer, self._of_method)
        self.course = Course(**checkpoint.state["course"])
        self.watchdog.restore(checkpoint.state["watchdog"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def put_best_back(self) -> None:
        """Put the parameters of the best evaluation back, if there was one."""
        if self.course.best_step is not None and self.course.best_step != self.course.step:
            load_best(self.folder, self.trainable)

    @property
    def _of_method(self) -> dict[str, Tensor]:
        """What decides how the run goes on besides what is trained.

        Its frozen tensors are made anew when it is resumed; but on another number of threads a
        mask chosen by a gradient may come out otherwise, and the trained values are of this one.
        """
        return {**self._frozen, **(self.hook.state if self.hook is not None else {})}

    def _penalise(self) -> None:
        """Add the gradient of the method's own penalty, the same in every process."""
        if self.hook is None:
            return
        parameters = list(self.trainable.values())
        gradients = torch.autograd.grad(self.hook.penalty(), parameters, allow_unused=True)
        scaler = self.accelerator.scaler
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient, alpha=1.0 if scaler is None else scaler.get_scale())

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
        exact = self.course.precision in (None, "float32")
        return TrainingError(
            f"diverged at step {step} of {self.total_steps}: the {what} became {value:.4g}. "
            f"Lower --lr (a third is a good next try){'' if exact else ', or train in float32'}."
        )

    def _keep_best(self, entry: dict[str, Any]) -> None:
        unsettled = self.hook is not None and not self.hook.settled(self.course.step)
        if self.validation is None or unsettled:
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
