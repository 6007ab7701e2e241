"""Measuring a trained classifier on one part of the data, and keeping what it said."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltafit.data import Splits
from deltafit.files import write_tensors_atomically
from deltafit.tasks.classification import Classifier
from deltafit.tasks.inference import compute_logits
from deltafit.tasks.metrics import classification_metrics
from deltafit.training.course import Examples


def judge(
    classifier: Classifier,
    examples: Examples,
    *,
    duplicates: Sequence[int],
    progress: Callable[[int], None],
) -> tuple[dict[str, Any], np.ndarray]:
    """Return a part's metrics and logits ``[rows, labels]``.

    Args:
        classifier: with its adapter active.
        examples: the part.
        duplicates: rows that stand in the training part too; the metrics are given once more
            without them, as ``without_duplicates``.
        progress: told after each pass how many rows were in it.
    """
    labels, names = np.asarray(examples.labels), classifier.label_names
    logits = compute_logits(classifier, examples.rows, progress=progress)
    metrics = classification_metrics(labels, logits, names)
    if duplicates and len(duplicates) < len(labels):
        kept = np.setdiff1d(np.arange(len(labels)), duplicates)
        without = classification_metrics(labels[kept], logits[kept], names)
        metrics["without_duplicates"] = {"removed": len(duplicates), **without}
    return metrics, logits


def write_predictions(path: Path, splits: Splits, logits: Mapping[str, np.ndarray]) -> None:
    """Keep the logits of held-out rows, so that runs can be compared row by row later."""
    tensors: dict[str, torch.Tensor] = {}
    for name, part in splits.parts().items():
        if name != "train":
            tensors[f"{name}/logits"] = torch.from_numpy(logits[name])
            tensors[f"{name}/labels"] = torch.tensor(part.labels)
    if tensors:
        write_tensors_atomically(path, tensors)
