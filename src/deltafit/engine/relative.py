"""Attention that counts relative positions, as T5's: a bias of the scores for one row of a sheet.

Such a model computes its bias from the number of tokens that a block is given. On a sheet that is
the number of all rows' tokens together. A row of it needs the bias of its own length, which is the
first part of that of the longest row.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltafit.engine.groups import Group
from deltafit.engine.layout import CannotPackError, Layout, find_layout

_COMPUTE = "compute_bias"


def hook_biases(block: nn.Module) -> Iterator[RemovableHandle]:
    """Let each attention in a block compute its bias for the longest row; yield the hooks' handles.

    It is told by a method ``compute_bias(query_length, key_length, ...)``, which gives
    ``[1, heads, queries, keys]``. The layout is taken from the attention's own call, so what
    gradient checkpointing runs again computes the same.
    """
    for module in block.modules():
        if callable(getattr(module, _COMPUTE, None)):
            yield module.register_forward_pre_hook(_enter, with_kwargs=True)
            yield module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    layout = find_layout(args, kwargs)
    if layout is None:
        return
    compute: Callable[..., Tensor] = getattr(module, _COMPUTE)

    def of_the_longest(query_length: int, key_length: int, *args: Any, **options: Any) -> Tensor:
        return compute(layout.longest, layout.longest, *args, **options)

    module.__dict__[_COMPUTE] = of_the_longest


def _leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    module.__dict__.pop(_COMPUTE, None)


def is_of_bias(model: nn.Module, name: str) -> bool:
    """Return whether a layer is what a bias is looked up in: it is given no tokens of the batch."""
    around = model.get_submodule(name.rpartition(".")[0])
    table = isinstance(model.get_submodule(name), nn.Embedding)
    return table and callable(getattr(around, _COMPUTE, None))


def checked_bias(
    module: nn.Module, bias: Tensor | None, heads: int, layout: Layout, keys: tuple[Group, ...]
) -> Tensor | None:
    """Return the bias of the longest row; None where there is none.

    Args:
        module: whose attention it is.
        bias: as the attention was given it.
        heads: of the queries.
        layout: of the sheet.
        keys: the groups of what its tokens attend to.

    Returns:
        ``[1, heads, tokens of the longest row, keys of the longest row]``.

    Raises:
        CannotPackError: it is another table than that.
    """
    if bias is None or bias.shape == (1, heads, layout.longest, keys[-1].length):
        return bias
    # A T5 block without a bias of its own, that is handed none, adds zeros.
    if not bias.any():
        return None
    raise CannotPackError(
        f"{type(module).__name__} computes its scores with a position_bias of shape "
        f"{list(bias.shape)}, and not with one for the {layout.longest} positions of a row."
    )


def mask_of(bias: Tensor, queries: Group, keys: Group) -> Tensor:
    """Return a group's part of the bias, -inf where a token does not see another.

    Args:
        bias: of the longest row.
        queries: the group.
        keys: what it attends to.

    Returns:
        ``[rows, heads, queries, keys]``, or one for all rows.
    """
    part = part_of(bias, queries, keys)
    if keys.hidden is None:
        return part
    return part.masked_fill(keys.hidden.to(part.device), -torch.inf)


def part_of(bias: Tensor, queries: Group, keys: Group) -> Tensor:
    """Return a group's part of the longest row's bias, ``[1, heads, queries, keys]``."""
    return bias[:, :, : queries.length, : keys.length]
