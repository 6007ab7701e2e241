"""Attention with its products in bf16, while a context lasts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from deltafit.engine.attention import NAMES, REDUCED
from deltafit.engine.frozen import LARGEST_ROUNDING, rounding_difference
from deltafit.engine.packing import find_stack
from deltafit.engine.precision import AttentionShape

# transformers has no one name for it.
_DROPOUTS = (
    *("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout"),
    "dropout_rate",
)


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

    One batch runs both ways as in training, and drops the same; compared is what leaves the model's
    last block. Modes and the state of torch's CPU generator are as before.

    Args:
        model: inside ``packed``, and with the frozen products that it trains with.
        batch: its keywords.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        difference = rounding_difference(model, batch, reduced_attention)
    finally:
        for module, training in modes.items():
            module.training = training
    if difference <= LARGEST_ROUNDING:
        return None
    return (
        f"With its attention in bf16, {type(model).__name__} gives other states than in float32 "
        f"(a token's differs by {difference:.1g} of its size)."
    )


def attention_shape(model: nn.Module, length: int) -> AttentionShape | None:
    """Return what the attention of a model's blocks looks like in training; None if it is not told.

    Args:
        model: one that can run packed.
        length: tokens of a typical row; it counts as the next power of two.
    """
    _, owner = find_stack(model)
    config = owner.config
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None)
    if not isinstance(heads, int):
        return None
    if not isinstance(width, int):
        width = int(config.hidden_size) // heads
    rates = (getattr(config, name, None) for name in _DROPOUTS)
    return AttentionShape(
        heads,
        width,
        1 << max(length - 1, 1).bit_length(),
        next((float(rate) for rate in rates if rate is not None), 0.0),
        any(getattr(module, "is_causal", False) for module in owner.modules()),
    )
