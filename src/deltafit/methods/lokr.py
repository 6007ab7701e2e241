"""Low-rank Kronecker product: Yeh et al., "LyCORIS", 2023 (arXiv:2309.14859), LoKr."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.checks import check_above_zero, check_whole
from deltafit.methods.delta import DeltaMethod
from deltafit.methods.lora_start import random_factor

FIRST, SECOND, LEFT, RIGHT = "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"
"""C ``[l, m]``, D ``[k, n]``, or in D's place B ``[k, rank]`` and A ``[rank, n]``; PEFT's names."""


@dataclass(frozen=True)
class LoKr(DeltaMethod):
    """y = W·x + s·(C ⊗ D)·x with s = α/rank: every entry of a small matrix times another one.

    A layer's outputs are l·k and its inputs m·n; C is ``[l, m]`` and D ``[k, n]``, or B·A of a rank
    below half of D's larger side. C starts at zero, so Δ is zero at the start, and D uniform within
    ±1/√columns. The rank of Δ is C's times D's. Of a convolution m·n are the channels, and D has n
    times as many columns as the kernel covers values of a channel.

    Args:
        target_modules: as of ``LoRA``, with the same defaults.
        layers: indices of the blocks to adapt; None for all.
        trained_modules: modules trained and saved whole besides the head.
        rank: of D, at least 1; from half of its larger side on, D is a matrix of its own.
        alpha: α in the scaling.
        decompose_factor: l and m are this where it divides the layer's side, and else the side's
            largest divisor that is neither above it nor above the side's root; -1 for the largest
            up to the root. A smaller one makes D larger, and Δ with it.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "lokr"
    result_name: ClassVar[str] = "lokr"
    summary: ClassVar[str] = "ΔW = s·C ⊗ (B·A) in chosen layers, and the head"
    default_learning_rate: ClassVar[float] = 5e-3
    size_setting: ClassVar[str | None] = "rank"

    rank: int = 8
    alpha: float = 16
    decompose_factor: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.rank, "rank")
        check_above_zero(self.alpha, "alpha")
        if self.decompose_factor != -1:
            check_whole(self.decompose_factor, "decompose_factor (-1 for the root apart)")

    @property
    def factor(self) -> float:
        """The scaling s."""
        return self.alpha / self.rank

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return C, which is zero, and D or its factors."""
        of_outputs, of_inputs = self._divided(layer)
        k, n = of_outputs[1], of_inputs[1] * layer.window
        whole = self.is_whole(layer)
        shapes = {SECOND: (k, n)} if whole else {LEFT: (k, self.rank), RIGHT: (self.rank, n)}
        first = torch.zeros(of_outputs[0], of_inputs[0], dtype=torch.float64)
        return {FIRST: first} | {
            name: random_factor("kaiming", shape, self.rank, generator_for(name))
            for name, shape in shapes.items()
        }

    def is_whole(self, layer: Layer) -> bool:
        """Return whether D is a matrix of its own, by PEFT's rule, which its files do not say."""
        return self.rank >= max(side[1] for side in self._divided(layer)) / 2

    def _divided(self, layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return l and k, and m and n, of which a convolution's window is no part."""
        return (
            divided(layer.outputs, self.decompose_factor),
            divided(layer.inputs // layer.window, self.decompose_factor),
        )

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": s·(C ⊗ D)}``."""
        *left, right = reversed(_second(tensors))
        delta = torch.kron(self.factor * tensors[FIRST], left[0] @ right if left else right)
        return {"weight": delta.T if layer.lookup else delta}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + Δ·x`` in y's dtype, never forming Δ.

        With x as a matrix X of ``[m, n]``, (C ⊗ D)·x is C·X·Dᵀ, ``[l, k]``, row by row (Van Loan,
        2000, "The ubiquitous Kronecker product"). A token of a lookup is one entry of X,
        which takes a column of each.
        """
        first, second = self.factor * tensors[FIRST], _second(tensors)
        if layer.lookup:
            m, n = first.shape[1], second[0].shape[1]
            column = layer.lowered(x, first.repeat_interleave(n, dim=1))
            other = layer.lowered(x, second[0].repeat(1, m))
            for matrix in second[1:]:
                other = functional.linear(other, matrix)
            return y + (column.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2).to(y.dtype)
        rows = x.to(first.dtype).unflatten(-1, (first.shape[1], -1))
        for matrix in second:
            rows = functional.linear(rows, matrix)
        return y + functional.linear(rows.mT, first).mT.flatten(-2).to(y.dtype)


def divided(side: int, decompose_factor: int) -> tuple[int, int]:
    """Return two numbers whose product is a layer's side, as LyCORIS's ``factorization`` does.

    Args:
        side: inputs or outputs of the layer.
        decompose_factor: see ``LoKr``.
    """
    if decompose_factor > 0 and side % decompose_factor == 0:
        return decompose_factor, side // decompose_factor
    root = math.isqrt(side)
    largest = root if decompose_factor == -1 else min(decompose_factor, root)
    smaller = next(number for number in range(largest, 0, -1) if side % number == 0)
    return smaller, side // smaller


def _second(tensors: Tensors) -> tuple[Tensor, ...]:
    """Return what D multiplies by, one after the other: A and B, or D itself."""
    return (tensors[SECOND],) if SECOND in tensors else (tensors[RIGHT], tensors[LEFT])
