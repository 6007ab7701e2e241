"""Validation figures in float32, whatever precision the model trains in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltafit.tasks.classification import Classifier, classification_loss
from deltafit.tasks.inference import compute_logits
from deltafit.tasks.metrics import classification_metrics, predictions_collapsed
from deltafit.training.course import Examples


def validate(
    classifier: Classifier, examples: Examples, class_weights: Tensor, label_smoothing: float
) -> tuple[dict[str, float], bool]:
    """Return the figures of one evaluation, and whether all rows were given the same class.

    ``loss`` is what training minimises, weights and smoothing included; see
    ``classification_metrics`` for the others.
    """
    with plain_forward(classifier.model):
        logits = compute_logits(classifier, examples.rows)
    labels = torch.tensor(examples.labels)
    metrics = classification_metrics(labels.numpy(), logits, classifier.label_names)
    loss = classification_loss(
        torch.from_numpy(logits),
        labels,
        class_weights=class_weights.cpu(),
        label_smoothing=label_smoothing,
    )
    figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return {**figures, "loss": float(loss)}, predictions_collapsed(logits)


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
