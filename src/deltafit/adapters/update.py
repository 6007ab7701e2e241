"""s·B·A·x added to a layer's output as one node of autograd, its products in their fastest form.

All of them have one side as short as the rank. The same numbers can take several times as long
where the long matrix is read by columns, which is the form that autograd finds for a product whose
second factor is a transpose.
"""

from typing import Any

import torch
from torch import Tensor


class LowRankUpdate(torch.autograd.Function):
    """y + factor · left · right · x, and factor · right · x beside it.

    It keeps x (nothing of it where ``right`` is frozen), that and the two factors. All of it can be
    differentiated again, and mapped; it has no forward-mode derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, right: Tensor, left: Tensor, factor: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``[tokens, outputs]`` and ``[rank, tokens]``.

        Args:
            y: ``[tokens, outputs]``.
            x: ``[tokens, inputs]``.
            right: ``[rank, inputs]``.
            left: ``[outputs, rank]``.
            factor: of their product.
        """
        low = factor * (right @ x.T)
        # One pass over y instead of three: the update is never a tensor of its own.
        return torch.addmm(y, low.T, left.T), low

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the gradients need."""
        _, x, right, left, ctx.factor = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, right, left, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x and the two factors."""
        dy, dlow = upstream
        x, right, left, low = ctx.saved_tensors
        _, wants_x, wants_right, wants_left, _ = ctx.needs_input_grad
        dleft = (low @ dy).T if dy is not None and wants_left else None
        if dy is not None and (wants_x or wants_right):
            through = left.T.contiguous() @ dy.T
            dlow = through if dlow is None else dlow + through
        if dlow is None:
            return dy, None, None, dleft, None
        dlow = ctx.factor * dlow
        return (
            dy,
            dlow.T @ right if wants_x else None,
            dlow @ x if wants_right else None,
            dleft,
            None,
        )
