"""Low-rank adaptation: Hu et al., "LoRA", 2021 (arXiv:2106.09685), section 4.1."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from deltafit.errors import UsageError
from deltafit.methods.base import (
    GeneratorFor,
    Layer,
    Statistic,
    Tensors,
)
from deltafit.methods.checks import (
    check_above_zero,
    check_below_one,
    check_choice,
    check_pattern,
    check_whole,
    is_number,
)
from deltafit.methods.delta import DeltaMethod
from deltafit.methods.eva import explained_shares, principal_directions, redistributed
from deltafit.methods.lora_start import (
    FROM_WEIGHT,
    Initialisation,
    factors_of_error,
    factors_of_weight,
    random_factor,
)

Value = TypeVar("Value", int, float)
Scaling = Literal["alpha/r", "alpha", "alpha/sqrt(r)"]


@dataclass(frozen=True)
class LoRA(DeltaMethod):
    """y = W·x + s·B·(A·x), with A of ``[rank, inputs]`` and B of ``[outputs, rank]``.

    B starts at zero, so Δ = s·B·A is zero at the start; in an embedding A starts at zero and B
    random, so that tokens never seen stay where they were.

    Args:
        target_modules: module names (whole dotted segments), a regular expression,
            ``"all-linear"``, or None for the architecture's default.
        layers: indices of the blocks to adapt; None for all.
        trained_modules: modules trained and saved whole besides the head.
        rank: r, the rank of Δ; at least 1.
        alpha: α in the scaling.
        dropout: probability of dropping an element of the adapter's input, in [0, 1). A lookup
            has no such input, and none is dropped there.
        scaling: s: ``"alpha/r"`` (the paper), ``"alpha"``, or ``"alpha/sqrt(r)"``
            (Kalajdzievski, arXiv:2312.03732).
        initialisation: ``"kaiming"``, uniform within ±1/√inputs (√5 as the slope gives that bound,
            as in torch's own linear layers; B of an embedding has ``rank`` inputs), or
            ``"gaussian"`` with standard deviation 1/√rank; or ``"orthogonal"``, orthonormal along
            the rank. ``"pissa"`` and ``"olora"`` start both in the weight (``lora_start`` has the
            formulas) and take s·B₀·A₀ off again, so that the base stays the base; such an adapter
            is saved as plain LoRA of twice the rank. ``"eva"`` starts A along the directions in
            which the layer's inputs vary most over some training texts, and B at zero, and moves
            ranks between layers (``eva`` has the formulas); not for embeddings. ``"loftq"`` starts
            both with s·B·A nearest to what storing the base's weight in few bits took from it, so
            not at Δ = 0; layers that are stored as they were start as ``"kaiming"``.
        rho: of ``"eva"``: how many times its rank a layer may get at most; 1 moves none. The
            scaling s of a layer stays as it was.
        learning_rate_ratio: the rate of B as a multiple of A's (LoRA+: Hayou et al.,
            arXiv:2402.12354; 16 there); of A for a lookup, whose A starts at zero.
        freeze_a: train B alone and keep A (of a lookup: A alone and keep B) as it started
            (LoRA-FA: Zhang et al., arXiv:2308.03303).
        rank_pattern: module name (whole segments at its end) → rank, in place of ``rank``; the
            first that matches counts.
        alpha_pattern: the same for ``alpha``.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "lora"
    result_name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "ΔW = s·B·A in chosen layers, and the head"
    default_learning_rate: ClassVar[float] = 5e-4
    size_setting: ClassVar[str | None] = "rank"
    convolves: ClassVar[bool] = True

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    scaling: Scaling = "alpha/r"
    initialisation: Initialisation = "kaiming"
    rho: float = 2.0
    learning_rate_ratio: float = 1.0
    freeze_a: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.rank_pattern, "rank_pattern")
        check_pattern(self.alpha_pattern, "alpha_pattern")
        for rank in (self.rank, *(rank for _, rank in self.rank_pattern)):
            _check_rank(rank)
        for alpha in (self.alpha, *(alpha for _, alpha in self.alpha_pattern)):
            check_above_zero(alpha, "alpha")
        check_below_one(self.dropout, "dropout")
        ratio = self.learning_rate_ratio
        if not is_number(ratio) or not 0 < ratio < math.inf:
            raise UsageError(f"learning_rate_ratio must be a number above 0; got {ratio!r}.")
        if not is_number(self.rho) or not 1 <= self.rho < math.inf:
            raise UsageError(f"rho must be a finite number of at least 1; got {self.rho!r}.")
        if not isinstance(self.freeze_a, bool):
            raise UsageError(f"freeze_a must be true or false; got {self.freeze_a!r}.")
        check_choice(self.scaling, "scaling", get_args(Scaling))
        check_choice(self.initialisation, "initialisation", get_args(Initialisation))

    @property
    def factor(self) -> float:
        """The scaling s of Δ = s·B·A."""
        divisor = {"alpha/r": self.rank, "alpha": 1.0, "alpha/sqrt(r)": math.sqrt(self.rank)}
        return self.alpha / divisor[self.scaling]

    def patterns(self) -> tuple[str, ...]:
        """Return the module names of ``rank_pattern`` and ``alpha_pattern``."""
        return tuple(name for name, _ in (*self.rank_pattern, *self.alpha_pattern))

    def for_module(self, module_name: str) -> "LoRA":
        """Return the method with the rank and alpha that the patterns give this module."""
        return replace(
            self,
            rank=_matching(self.rank_pattern, module_name, self.rank),
            alpha=_matching(self.alpha_pattern, module_name, self.alpha),
            rank_pattern=(),
            alpha_pattern=(),
        )

    def statistic(self) -> Statistic | None:
        """Return ``"inputs"`` for eva, and ``"rounding"`` for loftq."""
        wanted: dict[str, Statistic] = {"eva": "inputs", "loftq": "rounding"}
        return wanted.get(self.initialisation)

    def informed(self, statistics: Mapping[str, Tensors]) -> "LoRA":
        """Return the method with ranks moved by explained variance, and each layer's s as it was.

        That is for ``"eva"``, unless rho is 1.
        """
        if self.initialisation != "eva" or self.rho == 1:
            return self
        before = {name: self.for_module(name) for name in statistics}
        shares = {name: explained_shares(statistic) for name, statistic in statistics.items()}
        ranks = redistributed(shares, {n: own.rank for n, own in before.items()}, self.rho)
        alphas = {
            name: own.alpha * own.factor / replace(own, rank=ranks[name]).factor
            for name, own in before.items()
        }
        return replace(self, rank_pattern=longest_first(ranks), alpha_pattern=longest_first(alphas))

    def initialise_from(
        self, statistic: Tensors, layer: Layer, generator_for: GeneratorFor
    ) -> dict[str, Tensor]:
        """Return the tensors of ``initialise``, started from the statistic where there is one.

        Raises:
            DeltafitError: the rank is too large for it, or to start from the weight.
        """
        if self.statistic() is None:
            return self.initialise(layer, generator_for)
        plain = replace(self, initialisation="kaiming").initialise(layer, generator_for)
        if self.initialisation == "eva":
            return {**plain, "lora_A": principal_directions(statistic, self.rank)}
        if not statistic:
            return plain
        right, left = factors_of_error(statistic["error"], layer, self.rank, self.factor)
        return {**plain, "lora_A": right, "lora_B": left}

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``lora_A`` ``[rank, inputs]`` and ``lora_B`` ``[outputs, rank]``; one is zero.

        Started from the weight, none is, and ``lora_A_start`` and ``lora_B_start`` are the same.

        Raises:
            DeltafitError: the rank is too large to start from the weight.
        """
        if self.initialisation in FROM_WEIGHT:
            right, left = factors_of_weight(self.initialisation, layer, self.rank, self.factor)
            started = {"lora_A_start": right.clone(), "lora_B_start": left.clone()}
            return {"lora_A": right, "lora_B": left, **started}
        shapes = {"lora_A": (self.rank, layer.inputs), "lora_B": (layer.outputs, self.rank)}
        random = "lora_B" if layer.lookup else "lora_A"
        return {
            name: (
                random_factor(self.initialisation, shape, self.rank, generator_for(name))
                if name == random
                else torch.zeros(shape, dtype=torch.float64)
            )
            for name, shape in shapes.items()
        }

    def frozen_tensors(self, layer: Layer) -> tuple[str, ...]:
        """Return the starting values, and the factor that ``freeze_a`` keeps."""
        kept = "lora_B" if layer.lookup else "lora_A"
        return ("lora_A_start", "lora_B_start", *(kept,) * self.freeze_a)

    def rate_factors(self, layer: Layer) -> dict[str, float]:
        """Return the ratio for the factor that starts at zero."""
        return {"lora_A" if layer.lookup else "lora_B": self.learning_rate_ratio}

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": s·B·A}``, less what it started with."""
        right, left = factors_of(tensors)
        return {"weight": self.factor * layer.outer(left, right)}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + s·B·A·dropout(x)`` in y's dtype."""
        return add_update(layer, x, y, factors_of(tensors), self.factor, self.dropout)

    def kept(self, layers: Mapping[str, Tensors]) -> "LoRA":
        """Return plain LoRA: of twice the rank if it started in the weight."""
        if self.statistic() is not None:
            return replace(self, initialisation="kaiming", rho=LoRA.rho)
        if self.initialisation not in FROM_WEIGHT:
            return self
        growth = {"alpha/r": 2.0, "alpha": 1.0, "alpha/sqrt(r)": math.sqrt(2)}[self.scaling]
        return replace(
            self,
            initialisation="kaiming",
            rank=2 * self.rank,
            alpha=growth * self.alpha,
            rank_pattern=tuple((name, 2 * rank) for name, rank in self.rank_pattern),
            alpha_pattern=tuple((name, growth * alpha) for name, alpha in self.alpha_pattern),
        )

    def kept_tensors(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return A over A₀, and B beside -B₀, where there are such."""
        right, left = factors_of(tensors)
        return {"lora_A": right, "lora_B": left}


def add_update(
    layer: Layer,
    x: Tensor,
    y: Tensor,
    factors: tuple[Tensor, Tensor],
    scaling: float,
    dropout: float,
) -> Tensor:
    """Return ``y + scaling · left · (right · dropout(x))`` in y's dtype.

    Args:
        layer: a lookup has no input of which anything could be dropped.
        x: the layer's input.
        y: its output without the update.
        factors: right ``[rank, inputs]`` and left ``[outputs, rank]``.
        scaling: of their product.
        dropout: probability of dropping an element of the input, in training.
    """
    right, left = factors
    if not layer.lookup:
        x = layer.drop(x.to(right.dtype), dropout)
    return layer.add_low_rank(y, x, right, left, scaling)


def factors_of(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return the right and the left factor of Δ/s: A and B, or ``[A; A₀]`` and ``[B, -B₀]``."""
    right, left = tensors["lora_A"], tensors["lora_B"]
    if "lora_A_start" not in tensors:
        return right, left
    return (
        torch.cat((right, tensors["lora_A_start"])),
        torch.cat((left, -tensors["lora_B_start"]), 1),
    )


def _check_rank(rank: object) -> None:
    if isinstance(rank, float) and 0 < rank < 1:
        raise UsageError(
            f"rank must be a whole number of at least 1; got {rank}. LoRA's rank is the number of "
            "columns of B (8 is usual). A fraction is used for another method, a sparse update "
            f"that trains a fixed random {rank:.0%} of the weights and is not LoRA: that is "
            f"sparse:density={rank} here. For a low-rank update, give a rank such as 4, 8 or 16."
        )
    check_whole(rank, "rank")


def longest_first(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Return a pattern of each module's value; the longer of two names that end alike is first."""
    return tuple(sorted(values.items(), key=lambda item: -len(item[0])))


def _matching(pattern: tuple[tuple[str, Value], ...], module_name: str, default: Value) -> Value:
    return next(
        (value for name, value in pattern if f".{module_name}".endswith(f".{name}")), default
    )
