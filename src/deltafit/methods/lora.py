"""Low-rank adaptation: Hu et al., "LoRA", 2021 (arXiv:2106.09685), section 4.1."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deltafit.errors import UsageError
from deltafit.methods.base import DeltaMethod, GeneratorFor, Layer, check_pattern

Value = TypeVar("Value", int, float)
Scaling = Literal["alpha/r", "alpha", "alpha/sqrt(r)"]
Initialisation = Literal["kaiming", "gaussian"]


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
            ``"gaussian"`` with standard deviation 1/√rank.
        rank_pattern: module name (whole segments at its end) → rank, in place of ``rank``; the
            first that matches counts.
        alpha_pattern: the same for ``alpha``.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "lora"
    result_name: ClassVar[str] = "lora"
    default_learning_rate: ClassVar[float] = 5e-4

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    scaling: Scaling = "alpha/r"
    initialisation: Initialisation = "kaiming"
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.rank_pattern, "rank_pattern")
        check_pattern(self.alpha_pattern, "alpha_pattern")
        for rank in (self.rank, *(rank for _, rank in self.rank_pattern)):
            _check_rank(rank)
        for alpha in (self.alpha, *(alpha for _, alpha in self.alpha_pattern)):
            if not _is_number(alpha) or not 0 < alpha < math.inf:
                raise UsageError(f"alpha must be a finite number above 0; got {alpha!r}.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be at least 0 and below 1; got {self.dropout!r}.")
        for name, value, choices in (
            ("scaling", self.scaling, get_args(Scaling)),
            ("initialisation", self.initialisation, get_args(Initialisation)),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")

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

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``lora_A`` ``[rank, inputs]`` and ``lora_B`` ``[outputs, rank]``; one is zero."""
        shapes = {"lora_A": (self.rank, layer.inputs), "lora_B": (layer.outputs, self.rank)}
        random = "lora_B" if layer.lookup else "lora_A"
        return {
            name: (
                self._random(shape, generator_for(name))
                if name == random
                else torch.zeros(shape, dtype=torch.float64)
            )
            for name, shape in shapes.items()
        }

    def deltas(self, layer: Layer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``{"weight": s·B·A}``."""
        return {"weight": self.factor * layer.outer(tensors["lora_B"], tensors["lora_A"])}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``y + s·B·(A·dropout(x))`` in y's dtype, never forming Δ."""
        if not layer.lookup:
            x = functional.dropout(
                x.to(tensors["lora_A"].dtype), self.dropout, training=layer.training
            )
        return layer.add_low_rank(y, x, tensors["lora_A"], tensors["lora_B"], self.factor)

    def _random(self, shape: tuple[int, int], generator: Generator) -> Tensor:
        values = torch.empty(shape, dtype=torch.float64)
        if self.initialisation == "gaussian":
            return values.normal_(0, 1 / math.sqrt(self.rank), generator=generator)
        bound = 1 / math.sqrt(shape[1])
        return values.uniform_(-bound, bound, generator=generator)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_rank(rank: object) -> None:
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return
    if isinstance(rank, float) and 0 < rank < 1:
        raise UsageError(
            f"rank must be a whole number of at least 1; got {rank}. LoRA's rank is the number of "
            "columns of B (8 is usual). A fraction is used for another method, a sparse update "
            f"that trains a fixed random {rank:.0%} of the weights, which is not LoRA and not "
            "offered here; for a low-rank update, give a rank such as 4, 8 or 16."
        )
    raise UsageError(f"rank must be a whole number of at least 1; got {rank!r}.")


def _matching(pattern: tuple[tuple[str, Value], ...], module_name: str, default: Value) -> Value:
    return next(
        (value for name, value in pattern if f".{module_name}".endswith(f".{name}")), default
    )
