"""A matrix that is zero but for chosen entries: what it is, and x·Δᵀ without keeping it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def placed(values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the matrix with the values in their places and zeros elsewhere.

    Args:
        values: ``[k]``.
        indices: where each stands in the matrix read row by row, ``[k]``, integers.
        shape: rows and columns of the matrix.
    """
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.scatter_(0, indices.long(), values).view(shape)


class MaskedProduct(torch.autograd.Function):
    """x·Δᵀ, where Δ is made anew of its values in each pass, so that no dense Δ waits in between.

    The values' gradient is gathered from the dense dyᵀ·x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, indices: Tensor, outputs: int) -> Tensor:
        """Return ``[..., outputs]`` for ``x`` of ``[..., inputs]``; Δ is ``[outputs, inputs]``."""
        ctx.save_for_backward(x, values, indices)
        ctx.outputs = outputs
        return functional.linear(x, placed(values, indices, (outputs, x.shape[-1])))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x`` and of the values; ``dy`` may be in half precision."""
        (dy,) = upstream
        x, values, indices = ctx.saved_tensors
        dx = of_values = None
        if ctx.needs_input_grad[0]:
            delta = placed(values, indices, (ctx.outputs, x.shape[-1]))
            dx = (dy @ delta.to(dy.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dense = dy.reshape(-1, ctx.outputs).T @ x.reshape(-1, x.shape[-1]).to(dy.dtype)
            of_values = dense.flatten()[indices.long()].to(values.dtype)
        return dx, of_values, None, None
