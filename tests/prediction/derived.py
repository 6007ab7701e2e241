"""Saved adapters on one tiny base, to make others from.

Import as ``from tests.prediction.derived import saved_on``.
"""

import json
from pathlib import Path
from typing import Any

import torch

from deltafit.methods import Head, LoRA, Method
from deltafit.prediction.fingerprint import fingerprint
from deltafit.prediction.folder import load_saved, save_classifier
from deltafit.tasks.classification import Classifier
from tests.prediction.test_folder import MAX_LENGTH
from tests.training.tiny_runs import LABELS, adapted


def saved_on(
    base: str,
    folder: Path,
    method: Method | None = None,
    *,
    seed: int = 0,
    std: float = 0.1,
    head: str = "architecture",
    labels: tuple[str, ...] = LABELS,
    max_length: int = MAX_LENGTH,
) -> Classifier:
    """Save an adapter whose every trained tensor was moved by random values."""
    classifier = adapted(base, method or LoRA(rank=3), head=head)
    classifier.label_names = labels
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    plain = adapted(base, Head(), head=head)
    save_classifier(
        classifier,
        folder,
        base_fingerprint=fingerprint(plain.model, plain.head_parameters),
        max_length=max_length,
        facts={},
    )
    return classifier


def made(folder: Path) -> dict[str, Any]:
    """Prove a folder, and return what it says of its making."""
    load_saved(folder)
    content: dict[str, Any] = json.loads((folder / "deltafit.json").read_text())["made"]
    return content
