"""Attention with its weights written out, to drop some of them in bulk.

torch's fused kernel cannot drop weights on a CPU. torch then computes attention in plain operations
and draws its random numbers one at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltafit.engine.dropout import draw_kept
from deltafit.engine.groups import Group


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    *,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Return the attention of the rows of each group, computed in float32 or better.

    Args:
        query: ``[tokens, heads, width]``, on a CPU.
        key: of the same shape.
        value: ``[tokens, heads, width of values]``.
        groups: what the tokens are, in their order.
        scaling: of the scores.
        dropout: probability of dropping a weight.

    Returns:
        As ``value``.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    output: Tensor = _ExplicitAttention.apply(
        query.to(precise), key.to(precise), value.to(precise), tuple(groups), scaling, dropout
    )
    return output.to(value.dtype)


class _ExplicitAttention(torch.autograd.Function):
    """softmax(s·QKᵀ)·V, as one node for all groups.

    Autograd's own nodes, several for each group, would cost as much again as the work.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        groups: tuple[Group, ...],
        scaling: float,
        dropout: float,
    ) -> Tensor:
        heads = query.shape[1]
        ctx.groups, ctx.scaling = groups, scaling
        kept, ctx.rise = _draw(groups, heads, dropout)
        outputs: list[Tensor] = []
        saved: list[Tensor] = []
        # Factors go where the numbers are fewest, and not on the weights.
        query, value = query * scaling, value * ctx.rise
        for number, (group, q, k, v) in enumerate(_by_head(groups, query, key, value)):
            weights = torch.bmm(q, k.mT)
            if group.hidden is not None:
                scores = weights.view(group.rows, heads, group.length, group.length)
                scores.masked_fill_(group.hidden, float("-inf"))
            weights = weights.softmax(-1)
            saved += [q, k, v, weights]
            if kept:
                saved.append(kept[number].view(weights.shape))
                weights = weights * saved[-1]
            outputs.append(_by_token(group, torch.bmm(weights, v)))
        ctx.save_for_backward(*saved)
        return torch.cat(outputs)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dropped = len(saved) > 4 * len(ctx.groups)
        tensors = iter(saved)
        parts: list[list[Tensor]] = []
        for group, dy in _by_head(ctx.groups, upstream[0]):
            q, k, v, weights = (next(tensors) for _ in range(4))
            if not group.even:  # nothing comes back from padding
                dy.view(group.rows, -1, *dy.shape[1:]).mul_(group.real[:, None, :, None])
            dw = torch.bmm(dy, v.mT)
            used = weights
            if dropped:
                keep = next(tensors)
                dw, used = dw.mul_(keep), weights * keep
            # torch's kernel behind softmax: it has no other name.
            ds = torch._softmax_backward_data(dw, weights, -1, weights.dtype)
            products = torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(used.mT, dy)
            parts.append([_by_token(group, product) for product in products])
        gradients = [torch.cat(of_groups) for of_groups in zip(*parts, strict=True)]
        # What was saved of the query and the value has the factors already.
        gradients[0].mul_(ctx.scaling)
        gradients[2].mul_(ctx.rise)
        return *gradients, None, None, None


def _by_head(groups: Sequence[Group], *tensors: Tensor) -> list[tuple[Any, ...]]:
    """Return each group with the tensors' ``[rows · heads, length, width]`` of it, copies all."""
    sizes = [group.tokens for group in groups]
    return [
        (group, *(group.padded(part).transpose(1, 2).flatten(0, 1).contiguous() for part in parts))
        for group, *parts in zip(groups, *(tensor.split(sizes) for tensor in tensors), strict=True)
    ]


def _by_token(group: Group, result: Tensor) -> Tensor:
    """Return ``[rows · heads, length, width]`` as ``[tokens, heads, width]``."""
    return group.unpadded(result.view(group.rows, -1, *result.shape[1:]).transpose(1, 2))


def _draw(groups: Sequence[Group], heads: int, dropout: float) -> tuple[tuple[Tensor, ...], float]:
    """Return which weights of each group are kept, and the factor of those."""
    if not dropout:
        return (), 1.0
    sizes = [group.rows * heads * group.length**2 for group in groups]
    kept, rise = draw_kept(sum(sizes), dropout)
    return kept.split(sizes), rise
