"""What looking at a model's calls takes: modes, states out of a tuple, other forwards, a loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def first_of(output: Any) -> Any:
    """Return the hidden states that a block gives, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any] | None) -> Iterator[None]:
    """Let a module compute ``forward`` when it is called; None for what its class computes."""
    previous = module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if previous is not None:
            module.__dict__["forward"] = previous


def weighted_sum(value: Tensor) -> Tensor:
    """Return a sum in which every element counts by a weight of its own: a loss to check with."""
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    return (value.cpu().float() * weights).sum()
