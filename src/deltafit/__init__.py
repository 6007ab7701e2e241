"""deltafit: fit a small ΔW to a pretrained transformer, and compare honestly what that gives.

Every command has a function of the same name here: ``train``, ``compare``, ``run``,
``doctor``, ``estimate``, ``plan``, ``evaluate``, ``predict``, ``inspect``, ``merge``, ``verify``,
``ranks``, ``truncate``, ``combine`` and ``extract``. What is heavy loads when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltafit.adapters.combination import Combination
    from deltafit.experiments.comparison import compare
    from deltafit.experiments.doctor import doctor
    from deltafit.experiments.estimate import estimate
    from deltafit.experiments.plan import plan
    from deltafit.experiments.ranks import ranks
    from deltafit.experiments.recipe import Recipe
    from deltafit.experiments.recipe_run import run
    from deltafit.methods import (
        IA3,
        AdaLoRA,
        BitFit,
        Bottleneck,
        DoRA,
        FreezeFirst,
        Full,
        Head,
        LastBlocks,
        LoHa,
        LoKr,
        LoRA,
        Modules,
        Norms,
        Prefix,
        Prompt,
        Sparse,
        VeRA,
    )
    from deltafit.prediction.combining import combine
    from deltafit.prediction.extracting import extract
    from deltafit.prediction.inspecting import inspect
    from deltafit.prediction.merging import merge
    from deltafit.prediction.truncating import truncate
    from deltafit.prediction.using import evaluate, predict, verify
    from deltafit.training.progress import ConsoleReporter
    from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
    from deltafit.training.train import train

_HOMES = {
    "Combination": "deltafit.adapters.combination",
    "combine": "deltafit.prediction.combining",
    "extract": "deltafit.prediction.extracting",
    "truncate": "deltafit.prediction.truncating",
    "compare": "deltafit.experiments.comparison",
    "doctor": "deltafit.experiments.doctor",
    "estimate": "deltafit.experiments.estimate",
    "plan": "deltafit.experiments.plan",
    "ranks": "deltafit.experiments.ranks",
    "Recipe": "deltafit.experiments.recipe",
    "run": "deltafit.experiments.recipe_run",
    "ConsoleReporter": "deltafit.training.progress",
    "Full": "deltafit.methods",
    "Head": "deltafit.methods",
    "LastBlocks": "deltafit.methods",
    "AdaLoRA": "deltafit.methods",
    "BitFit": "deltafit.methods",
    "Bottleneck": "deltafit.methods",
    "DoRA": "deltafit.methods",
    "FreezeFirst": "deltafit.methods",
    "IA3": "deltafit.methods",
    "LoHa": "deltafit.methods",
    "LoKr": "deltafit.methods",
    "LoRA": "deltafit.methods",
    "Modules": "deltafit.methods",
    "Norms": "deltafit.methods",
    "Prefix": "deltafit.methods",
    "Prompt": "deltafit.methods",
    "Sparse": "deltafit.methods",
    "VeRA": "deltafit.methods",
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
    "IA3",
    "AdaLoRA",
    "BitFit",
    "Bottleneck",
    "Combination",
    "ConsoleReporter",
    "DataConfig",
    "DoRA",
    "FreezeFirst",
    "Full",
    "Head",
    "HeadConfig",
    "LastBlocks",
    "LoHa",
    "LoKr",
    "LoRA",
    "Modules",
    "Norms",
    "Prefix",
    "Prompt",
    "Recipe",
    "Sparse",
    "TrainingSettings",
    "VeRA",
    "combine",
    "compare",
    "doctor",
    "estimate",
    "evaluate",
    "extract",
    "inspect",
    "merge",
    "plan",
    "predict",
    "ranks",
    "run",
    "train",
    "truncate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deltafit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
