"""Adaptive budget allocation: Zhang et al., "AdaLoRA", 2023 (arXiv:2303.10512), section 3."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from deltafit.errors import UsageError
from deltafit.methods.allocation import RankAllocator
from deltafit.methods.base import GeneratorFor, Layer, StepHook, Tensors
from deltafit.methods.checks import check_above_zero, check_below_one, check_whole, is_number
from deltafit.methods.delta import DeltaMethod
from deltafit.methods.lora import LoRA, add_update, longest_first

_SETTINGS = ("target_modules", "layers", "trained_modules")


@dataclass(frozen=True)
class AdaLoRA(DeltaMethod):
    """Δ = s·P·Λ·Q with s = α/initial_rank, whose ranks move to where they are needed.

    P of ``[outputs, initial_rank]`` and Q of ``[initial_rank, inputs]`` are held near orthonormal
    by a penalty, so that Λ, a diagonal, ranks the triplets (P's column, λ, Q's row). Training
    starts with ``initial_rank`` triplets a layer; after ``warmup`` of its steps the least important
    of all layers are taken out (their λ set to zero) along a cubic, down to ``rank`` a layer on
    average, and for the last ``final`` of its steps the choice stands. A layer may lose all. The
    best evaluation is one of those behind the choice. What is saved is LoRA with each layer's own
    rank: the same Δ, without what was taken out.

    Args:
        rank: average rank in the end; at most ``initial_rank``.
        initial_rank: rank of every layer in the beginning.
        alpha: α in the scaling.
        dropout: probability of dropping an element of the adapter's input, in [0, 1); none of a
            lookup's.
        warmup: share of all steps before the first triplet goes.
        final: share of all steps after the last one went.
        interval: steps between two choices.
        sensitivity: β₁, of the moving average of importance |w·∂loss/∂w|.
        uncertainty: β₂, of the moving average of its deviation.
        orthogonality: γ, the penalty's weight. The penalty is the mean over matrices of
            ‖PᵀP - I‖ and ‖QQᵀ - I‖, as the authors' code has it.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "adalora"
    result_name: ClassVar[str] = "adalora"
    summary: ClassVar[str] = "ΔW = s·P·Λ·Q, whose ranks move to where they are needed, and the head"
    default_learning_rate: ClassVar[float] = 2e-3
    size_setting: ClassVar[str | None] = "initial_rank"
    convolves: ClassVar[bool] = True

    rank: int = 8
    initial_rank: int = 12
    alpha: float = 16
    dropout: float = 0.0
    warmup: float = 0.1
    final: float = 0.4
    interval: int = 1
    sensitivity: float = 0.85
    uncertainty: float = 0.85
    orthogonality: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "initial_rank", "interval"):
            check_whole(getattr(self, name), name)
        if self.rank > self.initial_rank:
            raise UsageError(
                f"rank, the average in the end, must be at most initial_rank; got {self.rank} and "
                f"{self.initial_rank}."
            )
        check_above_zero(self.alpha, "alpha")
        if not is_number(self.orthogonality) or not 0 <= self.orthogonality < math.inf:
            raise UsageError(f"orthogonality must be at least 0; got {self.orthogonality!r}.")
        for name in ("dropout", "warmup", "final", "sensitivity", "uncertainty"):
            check_below_one(getattr(self, name), name)
        if self.warmup + self.final > 1:
            raise UsageError(
                f"warmup and final are shares of one training; {self.warmup} and {self.final} are "
                "more than all of it."
            )

    def with_size(self, size: int) -> "AdaLoRA":
        """Return the method with another initial rank; the final one keeps its share of it."""
        share = self.rank / self.initial_rank
        return replace(self, initial_rank=size, rank=max(1, round(share * size)))

    @property
    def factor(self) -> float:
        """The scaling s of Δ = s·P·Λ·Q."""
        return self.alpha / self.initial_rank

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return Q, Λ and P: ``lora_A``, ``lora_E`` ``[initial_rank, 1]``, ``lora_B``; Λ is 0."""
        shapes = {
            "lora_A": (self.initial_rank, layer.inputs),
            "lora_B": (layer.outputs, self.initial_rank),
        }
        random = {
            name: torch.empty(shape, dtype=torch.float64).normal_(
                0, 0.02, generator=generator_for(name)
            )
            for name, shape in shapes.items()
        }
        return random | {"lora_E": torch.zeros(self.initial_rank, 1, dtype=torch.float64)}

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": s·P·Λ·Q}``."""
        right, left = _factors(tensors)
        return {"weight": self.factor * layer.outer(left, right)}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + s·P·Λ·Q·dropout(x)`` in y's dtype."""
        return add_update(layer, x, y, _factors(tensors), self.factor, self.dropout)

    def step_hook(self, layers: Sequence[Tensors], total_steps: int) -> StepHook:
        """Return what penalises and allocates."""
        return RankAllocator(
            layers,
            start=round(self.warmup * total_steps),
            end=round((1 - self.final) * total_steps),
            kept=self.rank * len(layers),
            interval=self.interval,
            sensitivity=self.sensitivity,
            uncertainty=self.uncertainty,
            orthogonality=self.orthogonality,
        )

    def kept(self, layers: Mapping[str, Tensors]) -> LoRA:
        """Return LoRA with the rank that each layer has left, at least 1."""
        ranks = {name: max(1, len(_left(tensors))) for name, tensors in layers.items()}
        return LoRA(
            **{name: getattr(self, name) for name in _SETTINGS},
            rank=self.rank,
            alpha=self.factor,
            scaling="alpha",
            dropout=self.dropout,
            rank_pattern=longest_first(ranks),
        )

    def kept_tensors(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return Λ·Q and P of the triplets that are left; of a layer that lost all, one zero."""
        left = _left(tensors)
        left = left if len(left) else torch.zeros(1, dtype=torch.int64, device=left.device)
        right, vectors = _factors(tensors)
        return {"lora_A": right[left], "lora_B": vectors[:, left]}


def _factors(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return the right and the left factor of Δ/s: Λ·Q and P."""
    return tensors["lora_E"] * tensors["lora_A"], tensors["lora_B"]


def _left(tensors: Tensors) -> Tensor:
    """Return the indices of the triplets whose λ is not zero."""
    return tensors["lora_E"].detach().flatten().nonzero().flatten()
