"""What looking at a model's calls takes: its modes put back, its states out of their tuple."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
