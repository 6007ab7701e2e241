"""AdamW over the trainable parameters, and the learning rate's course."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn

from deltafit.training.settings import Schedule, TrainingSettings


def make_optimiser(
    trainable: Mapping[str, nn.Parameter],
    head: Collection[str],
    settings: TrainingSettings,
    learning_rate: float,
    factors: Mapping[nn.Parameter, float],
) -> torch.optim.AdamW:
    """Return AdamW with the head's learning rate apart, and no weight decay on vectors.

    Args:
        trainable: parameter name → parameter.
        head: the names among them that make up the head.
        settings: the weight decay and the head's rate.
        learning_rate: the rate of everything but the head.
        factors: what the rate of a parameter is multiplied by, where it is not 1.
    """
    head_rate = settings.head_learning_rate or learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        rate = head_rate if name in head else learning_rate * factors.get(parameter, 1.0)
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    on_cpu = all(parameter.device.type == "cpu" for parameter in trainable.values())
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        # One pass over each tensor; torch takes several on a CPU unless it is told.
        fused=on_cpu or None,
    )


def rate_factor(step: int, total: int, schedule: Schedule, warmup: float) -> float:
    """Return the share of the highest learning rate at a step.

    The warm-up rises linearly over ``warmup * total`` steps and never starts at zero, so that
    the first step counts. After it, linear and cosine fall to zero just behind the last step.

    Args:
        step: 0 for the first optimiser step.
        total: number of optimiser steps.
        schedule: the course after the warm-up.
        warmup: share of all steps.
    """
    warmup_steps = math.ceil(warmup * total)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its highest one times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
