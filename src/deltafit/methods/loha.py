"""Low-rank Hadamard product: Hyeon-Woo et al., "FedPara", 2021 (arXiv:2108.06098), section 2.2.

As an adapter: Yeh et al., "LyCORIS", 2023 (arXiv:2309.14859), section 3.2 (LoHa).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.checks import check_above_zero, check_whole
from deltafit.methods.delta import DeltaMethod
from deltafit.methods.lora_start import random_factor

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
"""B₁ ``[outputs, rank]``, A₁ ``[rank, inputs]``, B₂ and A₂, as PEFT calls them."""


@dataclass(frozen=True)
class LoHa(DeltaMethod):
    """y = W·x + s·((B₁·A₁) ∘ (B₂·A₂))·x with s = α/rank: a product by elements of two of LoRA's.

    With twice LoRA's values of a rank r, Δ has a rank of up to r² (FedPara, proposition 1). A₂
    starts at zero, so Δ is zero at the start, and tokens that an embedding never sees stay where
    they were; the others start uniform within ±1/√columns.

    Args:
        target_modules: as of ``LoRA``, with the same defaults.
        layers: indices of the blocks to adapt; None for all.
        trained_modules: modules trained and saved whole besides the head.
        rank: of each of the two products; at least 1.
        alpha: α in the scaling.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "loha"
    result_name: ClassVar[str] = "loha"
    summary: ClassVar[str] = "ΔW = s·(B₁·A₁) ∘ (B₂·A₂) in chosen layers, and the head"
    default_learning_rate: ClassVar[float] = 5e-4
    size_setting: ClassVar[str | None] = "rank"

    rank: int = 8
    alpha: float = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.rank, "rank")
        check_above_zero(self.alpha, "alpha")

    @property
    def factor(self) -> float:
        """The scaling s."""
        return self.alpha / self.rank

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return the four factors, of which ``hada_w2_b`` is zero."""
        left, right = (layer.outputs, self.rank), (self.rank, layer.inputs)
        started = {
            name: random_factor("kaiming", shape, self.rank, generator_for(name))
            for name, shape in zip(NAMES, (left, right, left), strict=False)
        }
        return {**started, NAMES[-1]: torch.zeros(right, dtype=torch.float64)}

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": s·(B₁·A₁) ∘ (B₂·A₂)}``."""
        left, right, other_left, other_right = (tensors[name] for name in NAMES)
        product = layer.outer(left, right) * layer.outer(other_left, other_right)
        return {"weight": self.factor * product}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + Δ·x`` in y's dtype; Δ is formed, but for a lookup, which takes columns."""
        left, right, other_left, other_right = (tensors[name] for name in NAMES)
        if layer.lookup:
            one = functional.linear(layer.lowered(x, right), left)
            other = functional.linear(layer.lowered(x, other_right), other_left)
            return y + (self.factor * one * other).to(y.dtype)
        # The factor goes where the numbers are fewest.
        product = (self.factor * left @ right) * (other_left @ other_right)
        return y + functional.linear(x.to(product.dtype), product).to(y.dtype)
