"""Logits and frozen features for many texts, in float32, batches sorted by length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deltafit.data import length_grouped
from deltafit.tasks.classification import Classifier, collate, logits_of
from deltafit.tasks.pooling import POOLINGS, Pooling, pool

Rows = Sequence[Sequence[int]]


def compute_logits(classifier: Classifier, rows: Rows, *, batch_size: int = 32) -> np.ndarray:
    """Return the logits of tokenised texts in their order, float32 ``[texts, labels]``.

    The model runs in evaluation mode and without mixed precision, whatever it trained with.
    """
    width = len(classifier.label_names)
    result = np.empty((len(rows), width), dtype=np.float32)
    for indices, batch in _batches(classifier, rows, batch_size):
        result[indices] = logits_of(classifier.model, batch).float().cpu().numpy()
    return result


def compute_features(
    classifier: Classifier,
    rows: Rows,
    *,
    poolings: Sequence[Pooling] = POOLINGS,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda texts: None,
) -> dict[Pooling, np.ndarray]:
    """Return the encoder's pooled features, one pass for all poolings, ``[texts, width]`` each."""
    encoder = encoder_of(classifier.model)
    result: dict[Pooling, np.ndarray] = {}
    for indices, batch in _batches(classifier, rows, batch_size):
        state: Tensor = encoder(**batch).last_hidden_state
        for pooling in poolings:
            pooled = pool(state, batch["attention_mask"], pooling).float().cpu().numpy()
            if pooling not in result:
                result[pooling] = np.empty((len(rows), pooled.shape[1]), dtype=np.float32)
            result[pooling][indices] = pooled
        progress(len(indices))
    return result


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the part of a classifier that gives ``last_hidden_state``."""
    encoder = getattr(model, getattr(model, "base_model_prefix", "encoder"))
    assert isinstance(encoder, nn.Module)
    return encoder


def _batches(
    classifier: Classifier, rows: Rows, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    model = classifier.model
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for indices in length_grouped([len(row) for row in rows], batch_size):
                batch = collate(
                    [rows[index] for index in indices],
                    classifier.pad_token_id,
                    positions=classifier.positions,
                )
                yield indices, {name: tensor.to(device) for name, tensor in batch.items()}
    finally:
        model.train(training)
