"""Attention on a sheet by torch's kernel for rows of any lengths, on a GPU: one call for all rows.

It is FlashAttention's, behind ``torch.nn.attention.varlen``. No GPU has run this: the call and its
conditions are what torch documents and checks.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from deltafit.engine.layout import Layout


def _find_kernel() -> Any:
    """Return torch's function; None before torch 2.10, and where it takes less than is needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if needed <= signature(varlen_attn).parameters.keys() else None


kernel = _find_kernel()

_DTYPES = (torch.float16, torch.bfloat16)
_MULTIPLE = 8  # of which heads are as wide
# The kernel's forward pass takes 256, its backward pass not on every GPU.
_WIDEST = 192
_LEAST_CAPABILITY = (8, 0)  # Ampere


def takes(query: Tensor, value: Tensor, layout: Layout, dropout: float) -> bool:
    """Return whether the kernel computes this attention, here.

    Args:
        query: ``[1, heads, tokens, width]``, before mixed precision casts it.
        value: ``[1, heads, tokens, width of values]``.
        layout: of the sheet; a mask that is no window is not for the kernel.
        dropout: of attention weights; the kernel drops none.
    """
    width = query.shape[-1]
    return (
        not dropout
        and layout.window is not None
        and _runs_on(query.device)
        and working_dtype(query) in _DTYPES
        and width == value.shape[-1]
        and width % _MULTIPLE == 0
        and width <= _WIDEST
    )


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return what mixed precision, where it is on, makes of a tensor in a matrix product."""
    kind = tensor.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if mixed else tensor.dtype


def _runs_on(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and kernel is not None
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
    )


def variable_length_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float
) -> Tensor:
    """Return the attention of each row of the sheet to itself, within the layout's window.

    Args:
        query: ``[tokens, heads, width]``.
        key: the same, or a divisor of the heads.
        value: as ``key``.
        layout: where the rows begin and end, and who sees whom.
        scaling: of the scores.

    Returns:
        ``[tokens, heads, width]``, in the dtype that mixed precision asks for.
    """
    dtype = working_dtype(query)  # autocast knows nothing of the kernel
    bounds = layout.bounds.to(query.device)
    longest = layout.groups[-1].length
    output: Tensor = kernel(
        query.to(dtype), key.to(dtype), value.to(dtype),
        bounds, bounds, longest, longest,
        scale=scaling, window_size=layout.window, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output
