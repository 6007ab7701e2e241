"""Validation figures in float32, whatever precision the model trains in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier, classification_loss
from deltafit.tasks.inference import compute_logits
from deltafit.tasks.metrics import classification_metrics, predictions_collapsed
from deltafit.training.course import Examples
from deltafit.training.settings import TrainingSettings

COLLAPSED = (
    "every held-out row is given the same class. The learning rate may be far too high or too low, "
    "or the training too short."
)
NOTHING_TO_WAIT_FOR = "Stopping early (patience) needs validation rows to judge by."


class NotFiniteError(DeltafitError):
    """A logit is not a number, or infinite."""


def validate(
    classifier: Classifier, examples: Examples, class_weights: Tensor, settings: TrainingSettings
) -> tuple[dict[str, float], bool]:
    """Return the figures of one evaluation, and whether rows of all classes are given the same one.

    ``loss`` is what training minimises, weights and smoothing included; see
    ``classification_metrics`` for the others.

    Raises:
        NotFiniteError: a row has a logit that is not finite.
    """
    with plain_forward(classifier.model):
        logits = compute_logits(classifier, examples.rows)
    if not np.isfinite(logits).all():
        raise NotFiniteError("A logit is not finite.")
    labels = torch.tensor(examples.labels)
    metrics = classification_metrics(labels.numpy(), logits, classifier.label_names)
    loss = classification_loss(
        torch.from_numpy(logits),
        labels,
        class_weights=class_weights.cpu(),
        label_smoothing=settings.label_smoothing,
    )
    figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return {**figures, "loss": float(loss)}, collapsed(logits, examples.labels)


def collapsed(logits: NDArray[np.floating[Any]], labels: Sequence[int]) -> bool:
    """Say whether rows of several classes are all given the same one; logits ``[n, classes]``."""
    return len(set(labels)) > 1 and predictions_collapsed(logits)


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Take Accelerate's mixed precision off the model within the block."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def unwrap_forward(model: nn.Module) -> None:
    """Take Accelerate's mixed precision off the model for good."""
    model.__dict__.pop("forward", None)
    model.__dict__.pop("_original_forward", None)
