"""Prefix tuning: Li & Liang, 2021 (arXiv:2101.00190), section 4.2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deltafit.errors import UsageError
from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.checks import check_whole
from deltafit.methods.insertion import AttentionInsertion, BlockModules

_DEVIATION = 0.02  # of models' own weights at their start, as BERT and GPT-2 have it


@dataclass(frozen=True)
class Prefix(AttentionInsertion):
    """softmax(s·Q·[P_K; K]ᵀ)·[P_V; V]: trained keys and values before a text's own, in each block.

    P_K and P_V are ``[count, heads · width]``, as wide as a block's keys of all heads together. The
    virtual tokens take no positions: a text's are counted as without them, unless
    ``shift_positions``, and a rotary P_K is not rotated.

    They are trained as they are, without the paper's perceptron (Liu et al., "P-Tuning
    v2", arXiv:2110.07602, section 3.3). No values can start so that nothing changes: virtual tokens
    have a share in every softmax at once, so the model starts elsewhere than its base.

    Args:
        layers: indices of the blocks to adapt; None for all.
        count: virtual tokens in each block; at least 1.
        shift_positions: count a text's positions from behind the virtual tokens, so that it may be
            as much shorter. PEFT does, and reads such files alone.

    Raises:
        UsageError: a value is out of its range, or positions are to be shifted and ``layers``
            leave out blocks.
    """

    command_line_name: ClassVar[str] = "prefix"
    result_name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = (
        "keys and values of virtual tokens before a text's own in each block, and the head; does "
        "not merge"
    )
    # P-Tuning v2's authors train classifiers at 5e-3 to 2e-2.
    default_learning_rate: ClassVar[float] = 5e-3

    size_setting: ClassVar[str | None] = "count"

    count: int = 10
    shift_positions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.count, "count")
        if self.shift_positions and self.layers is not None:
            raise UsageError(
                "shift_positions counts positions for all blocks, so layers cannot leave out some. "
                "Give one of them."
            )

    @property
    def taken_positions(self) -> int:
        """One for each virtual token, if the text's own stand behind them."""
        return self.count if self.shift_positions else 0

    def places(self, modules: BlockModules) -> tuple[str, ...]:
        """Return the attention of every block."""
        return modules.attentions()

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``prefix_key`` and ``prefix_value``, both small and at random."""
        shape = (self.count, layer.outputs)
        return {
            name: torch.empty(shape, dtype=torch.float64).normal_(
                0, _DEVIATION, generator=generator_for(name)
            )
            for name in ("prefix_key", "prefix_value")
        }

    def virtual_tokens(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """Return P_K and P_V."""
        return tensors["prefix_key"], tensors["prefix_value"]
