"""The gradient of one optimiser step, however its rows are cut into passes and processes."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltafit.data import class_weights as balanced_weights
from deltafit.errors import UsageError
from deltafit.tasks.classification import Classifier, batch_of, classification_loss, logits_of
from deltafit.training.constant import ConstantStates
from deltafit.training.course import Examples
from deltafit.training.passes import cut_passes
from deltafit.training.settings import TrainingSettings


class StepGradients:
    """Accumulates the gradient of the mean loss over the rows of a step.

    Args:
        model: the classifier's model as Accelerate wrapped it.
        classifier: how rows become batches.
        train: the rows to learn from.
        settings: batch size and label smoothing.
        class_weights: ``[num_labels]``, on the accelerator's device.
        accelerator: devices and precision.
        constant: what frozen layers below the trained ones give for the rows.

    Attributes:
        packed: whether padding costs nothing, because no block of the model sees any.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: Classifier,
        train: Examples,
        settings: TrainingSettings,
        class_weights: Tensor,
        accelerator: Accelerator,
        constant: ConstantStates,
    ) -> None:
        self.model, self.classifier, self.train = model, classifier, train
        self.settings, self.class_weights, self.accelerator = settings, class_weights, accelerator
        self.constant, self.packed = constant, False
        self._lengths = [len(row) for row in train.rows]

    def accumulate(self, rows: Sequence[int]) -> float:
        """Add the gradient of the mean loss over ``rows`` to the parameters; return that loss.

        Each pass's loss is divided by the weight of the whole step, so that the result does not
        depend on how the step is cut into passes or spread over processes.
        """
        whole = weight_of(self.train, rows, self.class_weights)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        # A process without rows still takes part, with a share of nothing.
        own = rows[rank::world] or rows[:1]
        share = world if rows[rank::world] else 0
        passes = cut_passes(own, self._lengths, self.settings.batch_size, packed=self.packed)
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(passes, 1):
            last = number == len(passes)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._summed_loss(part) * (share / whole)
                self.accelerator.backward(loss)
                total += loss.detach()
        return float(self.accelerator.reduce(total, "mean"))

    def _summed_loss(self, rows: list[int]) -> Tensor:
        """Return the weighted sum of the rows' losses."""
        batch = batch_of(self.classifier, [self.train.rows[row] for row in rows])
        with self.accelerator.autocast(), self.constant.fed(rows):
            logits = logits_of(self.model, batch)
        smoothing = self.settings.label_smoothing
        return summed_loss(logits, self.train, rows, self.class_weights, smoothing)


def loss_weights(train: Examples, settings: TrainingSettings, num_labels: int) -> Tensor:
    """Return the weight of each class in the loss, ``[num_labels]``, on the CPU."""
    if settings.class_weights == "balanced":
        return torch.tensor(balanced_weights(train.labels, num_labels))
    return torch.ones(num_labels)


def weight_of(train: Examples, rows: Sequence[int], class_weights: Tensor) -> float:
    """Return the sum of the weights of the rows' classes; class weights are ``[num_labels]``."""
    return float(class_weights[[train.labels[row] for row in rows]].sum())


def summed_loss(
    logits: Tensor,
    train: Examples,
    rows: Sequence[int],
    class_weights: Tensor,
    label_smoothing: float,
) -> Tensor:
    """Return the weighted sum of the losses of rows; their weighted mean times ``weight_of``.

    Args:
        logits: of the rows, ``[rows, num_labels]``.
        train: their labels.
        rows: which ones.
        class_weights: ``[num_labels]``, on the logits' device.
        label_smoothing: share of the target spread evenly over all classes.
    """
    labels = torch.tensor([train.labels[row] for row in rows], device=logits.device)
    mean = classification_loss(
        logits, labels, class_weights=class_weights, label_smoothing=label_smoothing
    )
    return mean * class_weights[labels].sum()


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass, in the form that works over a frozen base.

    The reentrant form drops the gradient where a block's input needs none, as every block's does
    under a frozen embedding (PEFT#1142).

    Raises:
        UsageError: the model cannot.
    """
    owner, kind = _checkpointing_owner(model)
    try:
        getattr(owner, f"{kind}_enable")(**{f"{kind}_kwargs": {"use_reentrant": False}})
    except ValueError as error:
        raise UsageError(
            f"{error} Leave gradient checkpointing out; a smaller batch with more accumulation "
            "saves memory too."
        ) from error
    # transformers makes the embeddings' output need a gradient, for the reentrant form. Here that
    # would only send the backward pass through frozen blocks below the lowest trained one.
    owner.disable_input_require_grads()


def disable_gradient_checkpointing(model: nn.Module) -> None:
    """Keep activations again."""
    owner, kind = _checkpointing_owner(model)
    getattr(owner, f"{kind}_disable")()


def _checkpointing_owner(model: nn.Module) -> tuple[Any, str]:
    """Return the transformers model, and its word for checkpointing: a newer one or the old."""
    owner = model if hasattr(model, "gradient_checkpointing_enable") else model.encoder
    new = "activation_checkpointing"
    return owner, new if hasattr(owner, f"{new}_enable") else "gradient_checkpointing"
