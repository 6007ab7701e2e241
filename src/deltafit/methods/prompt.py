"""Prompt tuning: Lester et al., 2021 (arXiv:2104.08691), section 2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.checks import check_whole
from deltafit.methods.insertion import TextInsertion


@dataclass(frozen=True)
class Prompt(TextInsertion):
    """encoder([P; E(text)]) without the states of P: trained embeddings before a text's own.

    P is ``[count, width of an embedding]``. Its rows take the first ``count`` positions, as real
    tokens would, and the text the ones behind, so that a text may be as much shorter. The encoder
    gives the text's states alone: a head that reads the first token, the last or the mean of all
    finds what it expects. No embedding can start so that nothing changes: tokens attend to virtual
    ones at once, so the model starts elsewhere than its base.

    Args:
        count: virtual tokens; at least 1. They start as tokens drawn from the vocabulary.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "prompt"
    result_name: ClassVar[str] = "prompt"
    summary: ClassVar[str] = (
        "embeddings of virtual tokens before a text's own, and the head; does not merge"
    )
    # Adam's, as for a prefix; Lester et al. have 0.3 with Adafactor.
    default_learning_rate: ClassVar[float] = 5e-3
    size_setting: ClassVar[str | None] = "count"

    count: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.count, "count")

    @property
    def added_tokens(self) -> int:
        """One for each virtual token."""
        return self.count

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``prompt``: rows of the table, drawn with replacement."""
        drawn = torch.randint(layer.inputs, (self.count,), generator=generator_for("prompt"))
        table = layer.view().detach()
        return {"prompt": table[drawn.to(table.device)].cpu().double()}

    def virtual_embeddings(self, tensors: Tensors) -> Tensor:
        """Return P."""
        return tensors["prompt"]
