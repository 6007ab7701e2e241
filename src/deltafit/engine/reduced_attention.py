"""Attention with its products in bf16, while a context lasts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from deltafit.adapters.structure import main_stack
from deltafit.engine.attention import NAMES, REDUCED
from deltafit.engine.calls import evaluating
from deltafit.engine.frozen import LARGEST_ROUNDING, rounding_difference
from deltafit.engine.packing import find_stack
from deltafit.engine.precision import AttentionShape


@contextmanager
def reduced_attention(model: nn.Module) -> Iterator[None]:
    """Let attention compute scores, weights and products in bf16 while it trains on a CPU.

    In evaluation it stays as precise as it was, to the bit.

    Args:
        model: inside ``packed``. When the context ends, it is what it was.

    Raises:
        ValueError: it runs padded.
        CannotPackError: it cannot run packed.
    """
    _, owner = find_stack(model)
    before = owner.config._attn_implementation
    if before not in NAMES:
        raise ValueError("reduced_attention needs a packed run: call it inside packed(model).")
    owner.set_attn_implementation(REDUCED)
    try:
        yield
    finally:
        owner.set_attn_implementation(before)


def check_attention(model: nn.Module, batch: Mapping[str, Tensor]) -> str | None:
    """Return None if reduced attention gives the same but for rounding, and else a sentence.

    One batch runs both ways, its blocks as in training, and drops the same; compared are what
    leaves the last one, and the gradients of the trainable parameters. Gradients, modes and the
    state of torch's CPU generator are as before.

    Args:
        model: inside ``packed``.
        batch: its keywords.
    """
    with evaluating(model):
        for block in main_stack(model).blocks:
            model.get_submodule(block).train()
        difference = rounding_difference(model, batch, reduced_attention)
    if difference <= LARGEST_ROUNDING:
        return None
    return (
        f"With its attention in bf16, {type(model).__name__} gives other states or gradients than "
        f"in float32 (they differ by {difference:.1g} of their size)."
    )


def attention_shape(model: nn.Module, length: int) -> AttentionShape | None:
    """Return what the attention of a model's blocks looks like; None if nothing says it.

    Args:
        model: one that can run packed.
        length: tokens of a typical row; it counts as the next power of two.
    """
    _, owner = find_stack(model)
    heads, hidden, *own = (
        getattr(owner.config, name, None)
        for name in ("num_attention_heads", "hidden_size", "head_dim", "d_kv")
    )
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return None
    width = next((each for each in own if isinstance(each, int)), hidden // heads)
    return AttentionShape(heads, width, 1 << max(length - 1, 1).bit_length())
