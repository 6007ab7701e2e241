"""The training loop: one for every method, on Accelerate."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltafit.data import class_weights, epoch_order
from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier, classification_loss, collate, logits_of
from deltafit.tasks.inference import compute_logits
from deltafit.tasks.metrics import classification_metrics, find_metric, predictions_collapsed
from deltafit.training.checkpoints import (
    Checkpoint,
    load_best,
    restore,
    save_best,
    save_checkpoint,
)
from deltafit.training.interruption import stop_requested
from deltafit.training.optimisation import make_optimiser, rate_factor, set_rates
from deltafit.training.progress import Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.watchdog import GradientWatchdog

_SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass(frozen=True)
class Examples:
    """Tokenised texts and their label indices."""

    rows: Sequence[Sequence[int]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Course:
    """Where a run stands; kept in every checkpoint as JSON.

    Attributes:
        step: optimiser steps applied.
        seconds: spent in training steps alone.
        examples: rows seen.
        history: one entry an evaluation: step, epoch, train_loss, validation figures.
        best_step: the step of the best evaluation; None before the first.
        waited: evaluations since then.
        notes: sentences for the person.
        loss_sum: training loss times rows since the last evaluation.
        loss_rows: rows since the last evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    examples: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    waited: int = 0
    notes: list[str] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_rows: int = 0

    def entry_of(self, step: int | None) -> dict[str, Any] | None:
        """Return the history's entry of a step."""
        return next((entry for entry in self.history if entry["step"] == step), None)


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
        self.classifier, self.train, self.validation = classifier, train, validation
        self.settings, self.folder, self.reporter = settings, folder, reporter
        self.accelerator = accelerator
        self.course = Course()
        model = classifier.model.to(accelerator.device)
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.watchdog = GradientWatchdog(tuple(self.trainable))
        optimiser = make_optimiser(
            self.trainable, set(classifier.head_parameters), settings, learning_rate
        )
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        weights = (
            class_weights(train.labels, len(classifier.label_names))
            if settings.class_weights == "balanced"
            else [1.0] * len(classifier.label_names)
        )
        self.class_weights = torch.tensor(weights, device=accelerator.device)
        self.rows_per_step = settings.batch_size * settings.accumulation
        self.steps_per_epoch = math.ceil(len(train) / self.rows_per_step)
        self.total_steps = settings.epochs * self.steps_per_epoch

    def run(self, checkpoint: Checkpoint | None = None) -> Course:
        """Train to the end, or until patience runs out, and put the best parameters back.

        Raises:
            DeltafitError: the loss diverged, or a tensor is not being trained.
            Interrupted: the person asked to stop; a checkpoint was written.
        """
        torch.manual_seed(self.settings.seed)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.reporter.start("training", self.total_steps, self.course.step)
        saved = time.monotonic()
        with stop_requested() as asked:
            while self.course.step < self.total_steps and not self._out_of_patience():
                self._step()
                evaluated = self._is_evaluation_due()
                if evaluated:
                    self._evaluate()
                if asked() or evaluated or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()
                    saved = time.monotonic()
                asked.raise_if_set(self.course.step, self.total_steps)
        if self.course.best_step is not None and self.course.best_step != self.course.step:
            load_best(self.folder, self.trainable)
        self._release()
        return self.course

    def _resume(self, checkpoint: Checkpoint) -> None:
        restore(checkpoint, self.trainable, self.optimiser.optimizer)
        self.course = Course(**checkpoint.state["course"])
        self.watchdog.restore(checkpoint.state["watchdog"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

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
        self.model.train()
        set_rates(
            self.optimiser.optimizer,
            rate_factor(course.step, self.total_steps, settings.schedule, settings.warmup),
        )
        loss = self._gradients(rows)
        if not math.isfinite(loss):
            raise self._diverged("loss", loss)
        norm = self._clip()
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise self._diverged("gradient's norm", norm)
        if self.watchdog.watching:
            self._watch()
        self.optimiser.step()
        self.optimiser.zero_grad()
        course.step += 1
        course.examples += len(rows)
        course.loss_sum += loss * len(rows)
        course.loss_rows += len(rows)
        course.seconds += time.perf_counter() - began
        self.reporter.step(course.step, loss, course.examples / course.seconds)

    def _order(self, epoch: int) -> list[int]:
        cached: tuple[int, list[int]] | None = getattr(self, "_cached_order", None)
        if cached is None or cached[0] != epoch:
            cached = epoch, epoch_order(len(self.train), self.settings.seed, epoch)
            self._cached_order = cached
        return cached[1]

    def _gradients(self, rows: Sequence[int]) -> float:
        """Accumulate the gradient of the mean loss over ``rows``; return that loss.

        Each pass's loss is divided by the weight of the whole step, so that the result does not
        depend on how the step is cut into passes or spread over processes.
        """
        labels = torch.tensor([self.train.labels[row] for row in rows])
        whole = float(self.class_weights.cpu()[labels].sum())
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = rows[rank::world] or rows[:1]
        share = world if rows[rank::world] else 0
        passes = [
            own[start : start + self.settings.batch_size]
            for start in range(0, len(own), self.settings.batch_size)
        ]
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(passes):
            last = number == len(passes) - 1
            with _nothing() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(part) * (share / whole)
                self.accelerator.backward(loss)
                total += loss.detach()
        return float(self.accelerator.reduce(total, "mean"))

    def _loss(self, rows: Sequence[int]) -> Tensor:
        """Return the weighted sum of the rows' losses."""
        device = self.accelerator.device
        batch = collate(
            [self.train.rows[row] for row in rows],
            self.classifier.pad_token_id,
            positions=self.classifier.positions,
        )
        labels = torch.tensor([self.train.labels[row] for row in rows], device=device)
        with self.accelerator.autocast():
            logits = logits_of(self.model, {k: v.to(device) for k, v in batch.items()})
        mean = classification_loss(
            logits,
            labels,
            class_weights=self.class_weights,
            label_smoothing=self.settings.label_smoothing,
        )
        return mean * self.class_weights[labels].sum()

    def _clip(self) -> float:
        limit = self.settings.clip if self.settings.clip is not None else math.inf
        return float(self.accelerator.clip_grad_norm_(self.trainable.values(), limit))

    def _watch(self) -> None:
        if any(group["lr"] > 0 for group in self.optimiser.param_groups):
            self.watchdog.look(self.trainable)
        if not self.watchdog.watching and self.watchdog.outside:
            names = self.watchdog.outside
            self._note(
                f"{len(names)} tensors take no part in the model's output and are not trained: "
                f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}."
            )

    def _diverged(self, what: str, value: float) -> DeltafitError:
        return DeltafitError(
            f"Training diverged: at step {self.course.step + 1} of {self.total_steps} the {what} "
            f"became {value}. Lower --lr (a third is a good next try), or train in float32."
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
            entry |= self._validate(self.validation)
        course.history.append(entry)
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
        self.accelerator.log(numbers, step=course.step)
        self._keep_best(entry)

    def _validate(self, validation: Examples) -> dict[str, float]:
        with self._plain_forward():
            logits = compute_logits(self.classifier, validation.rows)
        if predictions_collapsed(logits):
            self._note(
                f"At step {self.course.step} every validation row was given the same class. The "
                "learning rate may be far too high or too low, or the training too short."
            )
        labels = torch.tensor(validation.labels)
        metrics = classification_metrics(labels.numpy(), logits, self.classifier.label_names)
        loss = classification_loss(
            torch.from_numpy(logits),
            labels,
            class_weights=self.class_weights.cpu(),
            label_smoothing=self.settings.label_smoothing,
        )
        figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
        return {**figures, "loss": float(loss)}

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

    @contextmanager
    def _plain_forward(self) -> Iterator[None]:
        """Take Accelerate's mixed precision off the model: evaluation runs in float32."""
        wrapped = self.classifier.model.__dict__.pop("forward", None)
        try:
            yield
        finally:
            if wrapped is not None:
                self.classifier.model.forward = wrapped

    def _release(self) -> None:
        """Leave the model as it came: plain forward, no checkpointing, evaluation mode."""
        self.classifier.model.__dict__.pop("forward", None)
        self.classifier.model.__dict__.pop("_original_forward", None)
        if self.settings.gradient_checkpointing:
            _checkpointing_owner(self.classifier.model).gradient_checkpointing_disable()
        self.classifier.model.eval()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass, in the form that works over a frozen base.

    The reentrant form drops the gradient where a block's input needs none, as every block's does
    under a frozen embedding.
    """
    owner = _checkpointing_owner(model)
    owner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _checkpointing_owner(model: nn.Module) -> Any:
    enable: Callable[..., None] | None = getattr(model, "gradient_checkpointing_enable", None)
    return model if enable is not None else model.get_submodule("encoder")
