"""Attention on a packed sheet, under transformers' interfaces for attention and for its masks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from deltafit.engine.explicit import explicit_attention
from deltafit.engine.groups import Group
from deltafit.engine.layout import CannotPackError, Layout, Window, band, layout_of
from deltafit.engine.relative import checked_bias, mask_of
from deltafit.engine.variable_length import takes, variable_length_attention

PACKED = "deltafit_packed"
"""The name by which transformers finds this attention."""
REDUCED = f"{PACKED}_bf16"
"""The name of the same, with products in bf16 where its module trains on a CPU."""
WRITTEN_OUT = f"{PACKED}_written_out"
"""The name of the same, computed as where weights are dropped, though none are."""
NAMES = frozenset({PACKED, REDUCED, WRITTEN_OUT})

# What some models do to the scores, or put in the place of the softmax.
_UNKNOWN_TERMS = ("softcap", "s_aux")


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **options: Any,
) -> Layout | Tensor | None:
    """Return the layout of a batch in the mask's place, or torch's mask where it must run padded.

    That is without a padding mask, behind a cache, with padding on the left or a row of nothing
    else, and with a mask function of the person's own. The arguments are ``sdpa_mask``'s.
    """

    def dense(**changed: Any) -> Tensor | None:
        given = {"q_offset": q_offset, "kv_offset": kv_offset, "local_size": local_size, **options}
        mask: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, attention_mask=attention_mask, **{**given, **changed}
        )
        return mask

    if (
        attention_mask is None
        or attention_mask.shape != (batch_size, q_length)
        or q_length != kv_length
        or not isinstance(q_offset, int)
        or (q_offset, kv_offset) != (0, 0)
        or options.get("use_vmap")
    ):
        return dense()
    # transformers' own word for "nothing but causal" and "nothing at all", padding aside and a
    # window aside that the batch may not fill.
    causal = bool(options.get("allow_is_causal_skip", True))
    plain = causal or bool(options.get("allow_is_bidirectional_skip", False))
    mask = window = None
    written_out = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    if plain and local_size is not None and q_length >= local_size:
        # Nothing but the place in a row decides, so one row without padding shows it.
        window = _window_of(
            sdpa_mask(1, q_length, kv_length, local_size=local_size, **{**options, **written_out}),
            (local_size - 1, 0) if causal else (local_size, local_size),
        )
    if not plain or (local_size is not None and q_length >= local_size and window is None):
        mask = dense(**written_out)
    causal = causal and window is None and mask is None
    layout = layout_of(attention_mask.bool(), causal=causal, window=window, mask=mask)
    return dense() if layout is None else layout


def _window_of(seen: Tensor, window: Window) -> Window | None:
    """Return the window if it is what a row sees; chunks, whose size has the same name, are not."""
    return window if torch.equal(seen, band(seen.shape[-1], window, seen.device)) else None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Layout | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    *,
    products: torch.dtype | None = None,
    written_out: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """Let the tokens of each row attend to one another.

    Args:
        module: whose attention it is.
        query: ``[1, heads, tokens, width]``.
        key: the same, or a divisor of the heads.
        value: like ``key``, of any width.
        attention_mask: the layout; or a mask or None, where the call runs padded.
        dropout: probability of dropping a weight.
        scaling: of the scores; by default 1/√width.
        position_bias: what is added to the scores of the longest row, ``[1, heads, tokens, keys]``;
            of every other row's, the first part of it.
        products: the dtype of all products while the module trains on a CPU; None for the tensors'.
        written_out: compute as where weights are dropped on a CPU.
        options: for other kinds of attention.

    Returns:
        ``[1, tokens, heads, width of values]``, and None for the weights.

    Raises:
        CannotPackError: there is more to the scores, or the tensors are no sheet of this layout.
    """
    if not isinstance(attention_mask, Layout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling,
            position_bias=position_bias, **options,
        )[0], None  # fmt: skip
    _refuse_unknown(module, options, (query, key, value), attention_mask.tokens)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = map(_sheet, (query, key, value))
    if position_bias is None and takes(query, value, attention_mask, dropout):
        return variable_length_attention(q, k, v, attention_mask, scale)[None], None
    key, value, groups = attention_mask.attended(key, value)
    k, v = (_sheet(tensor, q.shape[1]) for tensor in (key, value))
    bias = checked_bias(module, position_bias, q.shape[1], attention_mask, groups)
    products = products if module.training else None
    if (dropout or products or written_out) and q.device.type == "cpu":
        output = explicit_attention(
            q, k, v, attention_mask.groups, groups,
            bias=bias, scaling=scale, dropout=dropout, products=products,
        )  # fmt: skip
    else:
        own = attention_mask.groups
        output = _fused_attention(own, groups, (q, k, v), bias, scaling=scale, dropout=dropout)
    return output[None], None


def _sheet(tensor: Tensor, heads: int | None = None) -> Tensor:
    """Return ``[tokens, heads, width]`` of ``[1, own heads, tokens, width]``.

    Own heads are repeated where there are fewer; without ``heads`` they stay as many.
    """
    sheet = tensor.squeeze(0).transpose(0, 1)
    times = 1 if heads is None else heads // sheet.shape[1]
    return sheet if times == 1 else sheet.repeat_interleave(times, 1)


def _refuse_unknown(
    module: nn.Module, options: dict[str, Any], tensors: tuple[Tensor, ...], tokens: int
) -> None:
    name = type(module).__name__
    for term in _UNKNOWN_TERMS:
        if options.get(term) is not None:
            raise CannotPackError(f"{name} computes its scores with a {term}, which is not known.")
    for tensor in tensors:
        if (tensor.shape[0], tensor.shape[2]) != (1, tokens):
            raise CannotPackError(
                f"{name} attends to a tensor of shape {list(tensor.shape)}, and not to the "
                f"{tokens} tokens of the packed batch."
            )


def _fused_attention(
    queries: Sequence[Group],
    groups: Sequence[Group],
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    *,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Return attention by torch's kernel, group by group; ``[tokens, heads, width]`` each."""
    query, key, value = tensors
    own, sizes = ([group.tokens for group in each] for each in (queries, groups))
    outputs = []
    for of_queries, group, *parts in zip(
        queries, groups, query.split(own), key.split(sizes), value.split(sizes), strict=True
    ):
        q = of_queries.padded(parts[0]).transpose(1, 2)
        k, v = (group.padded(tensor).transpose(1, 2) for tensor in parts[1:])
        if bias is not None:
            seen: Tensor | None = mask_of(bias, of_queries, group).to(q.dtype)
        else:
            seen = None if group.seen is None else group.seen.to(q.device)
        output = functional.scaled_dot_product_attention(
            q, k, v, seen, dropout, is_causal=group.causal and seen is None, scale=scaling
        )
        outputs.append(of_queries.unpadded(output.transpose(1, 2)))
    return torch.cat(outputs)


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(REDUCED, partial(packed_attention, products=torch.bfloat16))
AttentionInterface.register(WRITTEN_OUT, partial(packed_attention, written_out=True))
for _name in NAMES:
    AttentionMaskInterface.register(_name, packed_mask)
