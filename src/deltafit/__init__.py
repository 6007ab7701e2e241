"""deltafit: fit a small ΔW to a pretrained transformer, and compare honestly what that gives.

Every command has a function of the same name here: ``train``, ``compare``, ``evaluate``,
``predict``, ``inspect``, ``merge`` and ``verify``. What is heavy loads when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltafit.experiments.comparison import compare
    from deltafit.methods import (
        AdaLoRA,
        Bottleneck,
        DoRA,
        Full,
        Head,
        LastBlocks,
        LoRA,
        Prefix,
    )
    from deltafit.prediction.inspecting import inspect
    from deltafit.prediction.merging import merge
    from deltafit.prediction.using import evaluate, predict, verify
    from deltafit.training.progress import ConsoleReporter
    from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
    from deltafit.training.train import train

_HOMES = {
    "compare": "deltafit.experiments.comparison",
    "ConsoleReporter": "deltafit.training.progress",
    "Full": "deltafit.methods",
    "Head": "deltafit.methods",
    "LastBlocks": "deltafit.methods",
    "AdaLoRA": "deltafit.methods",
    "Bottleneck": "deltafit.methods",
    "DoRA": "deltafit.methods",
    "LoRA": "deltafit.methods",
    "Prefix": "deltafit.methods",
    "inspect": "deltafit.prediction.inspecting",
    "merge": "deltafit.prediction.merging",
    "evaluate": "deltafit.prediction.using",
    "predict": "deltafit.prediction.using",
    "verify": "deltafit.prediction.using",
    "DataConfig": "deltafit.training.settings",
    "HeadConfig": "deltafit.training.settings",
    "TrainingSettings": "deltafit.training.settings",
    "train": "deltafit.training.train",
}

__all__ = [
    "AdaLoRA",
    "Bottleneck",
    "ConsoleReporter",
    "DataConfig",
    "DoRA",
    "Full",
    "Head",
    "HeadConfig",
    "LastBlocks",
    "LoRA",
    "Prefix",
    "TrainingSettings",
    "compare",
    "evaluate",
    "inspect",
    "merge",
    "predict",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deltafit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
