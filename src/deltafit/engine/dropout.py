"""Dropout whose random numbers are drawn in bulk.

torch's CPU kernel draws them one at a time, at more than the cost of the product before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deltafit.adapters.layers import is_adapted, view_of

_LEVELS = 1 << 16


def draw_kept(count: int, p: float) -> tuple[Tensor, float]:
    """Draw which of ``count`` elements dropout keeps, from torch's CPU generator.

    A random number has 16 bits, so ``p`` is rounded to a multiple of 1/65536.

    Returns:
        uint8 ``[count]``, 1 for kept; and the factor of what is kept, 1/(1-p) for the rounded p.
    """
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    dropped = round(p * _LEVELS)
    kept = words.view(np.uint16)[:count] >= dropped
    rise = _LEVELS / (_LEVELS - dropped) if dropped < _LEVELS else 0.0
    return torch.from_numpy(kept.view(np.uint8)), rise


def drop(x: Tensor, kept: Tensor, rise: float) -> Tensor:
    """Return ``x`` · ``kept`` · ``rise``."""
    return (x * kept).mul_(rise)


def drop_in_bulk(x: Tensor, p: float) -> Tensor:
    """Return ``x`` with each element zero with probability ``p``, and else divided by 1-p.

    The probability is rounded; see ``draw_kept``.
    """
    dropped: Tensor = _Drop.apply(x, p)
    return dropped


class _Drop(torch.autograd.Function):
    """Keeps one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept, ctx.rise = draw_kept(x.numel(), p)
        kept = kept.view(x.shape)
        ctx.save_for_backward(kept)
        return drop(x, kept, ctx.rise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return drop(upstream[0], kept, ctx.rise), None


class BulkDropout(nn.Dropout):
    """``nn.Dropout`` with ``drop_in_bulk`` in training on a CPU; elsewhere what it always was."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` with elements dropped, of the same shape."""
        if not self.training or not self.p or input.device.type != "cpu":
            return super().forward(input)
        return drop_in_bulk(input, self.p)


@contextmanager
def bulk_dropout(model: nn.Module) -> Iterator[None]:
    """Let every ``nn.Dropout`` of a model draw in bulk, and what adapters drop of their inputs.

    The modules' classes are swapped in place; adapted layers must lie on the CPU.

    The masks depend on the state of torch's CPU generator alone, so a seed gives the same ones
    again, and gradient checkpointing does too. They are not the ones that torch would draw. Dropout
    that a model calls as a function stays torch's.
    """
    modules = [module for module in model.modules() if type(module) is nn.Dropout]
    views = [view_of(module) for module in model.modules() if is_adapted(module)]
    before = [view.dropping for view in views]
    try:
        for module in modules:
            module.__class__ = BulkDropout
        for view in views:
            view.dropping = drop_in_bulk
        yield
    finally:
        for module in modules:
            module.__class__ = nn.Dropout
        for view, dropping in zip(views, before, strict=True):
            view.dropping = dropping
