"""Attention with its weights written out, to drop some of them in bulk, in bf16 where that pays.

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
from deltafit.engine.relative import part_of


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Sequence[Group],
    groups: Sequence[Group],
    *,
    bias: Tensor | None = None,
    scaling: float,
    dropout: float,
    products: torch.dtype | None = None,
) -> Tensor:
    """Return the attention of the rows of each group.

    Args:
        query: ``[tokens, heads, width]``, on a CPU.
        key: of the same shape, or of other tokens.
        value: ``[tokens of the keys, heads, width of values]``.
        queries: the tokens of ``query``, in their order.
        groups: those of ``key``; what each says of sight holds for the queries beside it.
        bias: of the scores of the longest row, ``[1, heads, tokens, keys]``; other rows' is its
            first part.
        scaling: of the scores.
        dropout: probability of dropping a weight.
        products: the dtype of scores, weights and all products, forward and backward; None for
            float32 or better.

    Returns:
        ``[tokens, heads, width of values]``.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    output: Tensor = _ExplicitAttention.apply(
        query.to(precise), key.to(precise), value.to(precise),
        None if bias is None else bias.to(precise),
        tuple(queries), tuple(groups), scaling, dropout, products or precise,
    )  # fmt: skip
    return output.to(value.dtype)


class _ExplicitAttention(torch.autograd.Function):
    """softmax(s·QKᵀ + bias)·V, as one node for all groups.

    Autograd's own nodes, several for each group, would cost as much again as the work.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        queries: tuple[Group, ...],
        groups: tuple[Group, ...],
        scaling: float,
        dropout: float,
        products: torch.dtype,
    ) -> Tensor:
        heads, precise = query.shape[1], query.dtype
        ctx.queries, ctx.groups, ctx.scaling = queries, groups, scaling
        ctx.shape = None if bias is None else bias.shape
        kept, ctx.rise = _draw(queries, groups, heads, dropout)
        outputs: list[Tensor] = []
        saved: list[Tensor] = []
        # Factors go where the numbers are fewest, and not on the weights.
        places = (queries, query * scaling), (groups, key), (groups, value * ctx.rise)
        parts = [_by_head(place, tensor.to(products)) for place, tensor in places]
        for number, (own, group, q, k, v) in enumerate(zip(queries, groups, *parts, strict=True)):
            weights = torch.bmm(q, k.mT)
            scores = weights.view(group.rows, heads, own.length, group.length)
            if bias is not None:
                scores += part_of(bias, own, group)
            if group.hidden is not None:
                scores.masked_fill_(group.hidden, float("-inf"))
            weights = weights.softmax(-1)
            saved += [q, k, v, weights]
            if kept:
                saved.append(kept[number].view(weights.shape))
                weights = weights * saved[-1]
            outputs.append(_by_token(own, torch.bmm(weights, v)))
        ctx.save_for_backward(*saved)
        return torch.cat(outputs).to(precise)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dropped = len(saved) > 4 * len(ctx.groups)
        tensors = iter(saved)
        parts: list[list[Tensor]] = []
        of_bias = upstream[0].new_zeros(ctx.shape) if ctx.needs_input_grad[3] else None
        precise, products = upstream[0].dtype, saved[0].dtype
        upstreams = _by_head(ctx.queries, upstream[0].to(products))
        for own, group, dy in zip(ctx.queries, ctx.groups, upstreams, strict=True):
            q, k, v, weights = (next(tensors) for _ in range(4))
            if not own.even:  # nothing comes back from padding
                dy.view(own.rows, -1, *dy.shape[1:]).mul_(own.real[:, None, :, None])
            dw = torch.bmm(dy, v.mT)
            used = weights
            if dropped:
                keep = next(tensors)
                dw, used = dw.mul_(keep), weights * keep
            # torch's kernel behind softmax: it has no other name.
            ds = torch._softmax_backward_data(dw, weights, -1, weights.dtype)
            if of_bias is not None:
                of_rows = ds.view(group.rows, -1, own.length, group.length)
                part_of(of_bias, own, group).add_(of_rows.sum(0, dtype=precise))
            factors = (own, ds, k), (group, ds.mT, q), (group, used.mT, dy)
            parts.append([_by_token(place, torch.bmm(a, b)) for place, a, b in factors])
        gradients = [torch.cat(of_groups).to(precise) for of_groups in zip(*parts, strict=True)]
        # What was saved of the query and the value has the factors already.
        gradients[0].mul_(ctx.scaling)
        gradients[2].mul_(ctx.rise)
        return *gradients, of_bias, None, None, None, None, None


def _by_head(groups: Sequence[Group], tensor: Tensor) -> list[Tensor]:
    """Return the tensor's ``[rows · heads, length, width]`` of each group.

    They are copies, but for groups of one token a row.
    """
    parts = zip(groups, tensor.split([group.tokens for group in groups]), strict=True)
    return [group.padded(part).transpose(1, 2).flatten(0, 1).contiguous() for group, part in parts]


def _by_token(group: Group, result: Tensor) -> Tensor:
    """Return ``[rows · heads, length, width]`` as ``[tokens, heads, width]``."""
    return group.unpadded(result.view(group.rows, -1, *result.shape[1:]).transpose(1, 2))


def _draw(
    queries: Sequence[Group], groups: Sequence[Group], heads: int, dropout: float
) -> tuple[tuple[Tensor, ...], float]:
    """Return which weights of each group are kept, and the factor of those."""
    if not dropout:
        return (), 1.0
    pairs = zip(queries, groups, strict=True)
    sizes = [group.rows * heads * own.length * group.length for own, group in pairs]
    kept, rise = draw_kept(sum(sizes), dropout)
    return kept.split(sizes), rise
