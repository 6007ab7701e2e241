"""Logits of a saved classifier, its adapter in the base's weights for the time of the call."""

import logging
from collections.abc import Callable

import numpy as np
import psutil
import torch
from torch import nn

from deltafit.adapters import merged, model_adapters
from deltafit.data import across_lengths
from deltafit.methods import DeltaMethod
from deltafit.prediction.canaries import TOLERANCE, largest_difference
from deltafit.tasks.classification import Classifier
from deltafit.tasks.inference import BATCH_TOKENS, InferencePrecision, Rows, compute_logits

_logger = logging.getLogger(__name__)

# Merging costs about what a hundred tokens do: LoRA's own products, and copying the weights.
_LEAST_TOKENS = 2048
# Of the memory that is free: the merged weights stand beside the original ones.
_LARGEST_SHARE = 0.25


def compute_logits_merged(
    classifier: Classifier,
    rows: Rows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    precision: InferencePrecision = "float32",
    progress: Callable[[int], None] = lambda texts: None,
) -> np.ndarray:
    """Return ``compute_logits``, computed with the adapter merged if that pays.

    It pays where there are many tokens for the layers that are adapted, on a CPU, and memory for
    their merged weights. Two texts are looked at both ways first: where their logits differ by more
    than a canary's may, nothing is merged. Afterwards the weights have the very bits of before.

    Args:
        classifier: as it was loaded; in no other thread's use.
        rows: token ids of each text; none empty.
        batch_tokens: see ``compute_logits``.
        precision: of the forward passes; the weights are merged in their own.
        progress: see ``compute_logits``.
    """

    def compute() -> np.ndarray:
        return compute_logits(
            classifier, rows, batch_tokens=batch_tokens, precision=precision, progress=progress
        )

    if not _pays(classifier.model, rows):
        return compute()
    looked_at = across_lengths(rows, 2)
    expected = compute_logits(classifier, looked_at)
    with merged(classifier.model):
        found = compute_logits(classifier, looked_at)
        if largest_difference(found, expected) <= TOLERANCE:  # false for NaN too
            return compute()
    _logger.warning(
        "Merged, %s gives other logits: it runs unmerged, which is slower.",
        type(classifier.model).__name__,
    )
    return compute()


def _pays(model: nn.Module, rows: Rows) -> bool:
    state = model_adapters(model)
    if state.active is None or state.merged is not None:
        return False
    adapter = state.adapters[state.active]
    if not isinstance(adapter.method, DeltaMethod):
        return False  # there is nothing to merge, or it cannot be
    weights = [
        parameter
        for target in adapter.targets
        for parameter in model.get_submodule(target).parameters(recurse=False)
    ]
    on_cpu = all(weight.device.type == "cpu" for weight in weights)
    # In half precision the sum would lose what is small beside the weight.
    exact = all(weight.dtype in (torch.float32, torch.float64) for weight in weights)
    if not weights or not on_cpu or not exact or sum(map(len, rows)) < _LEAST_TOKENS:
        return False
    needed = sum(weight.nbytes for weight in weights)
    return bool(needed <= _LARGEST_SHARE * psutil.virtual_memory().available)
