"""Vector-based random matrix adaptation: Kopiczko et al., "VeRA", 2023 (arXiv:2310.11454)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from deltafit.errors import UsageError
from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.checks import check_below_one, check_whole, is_number
from deltafit.methods.delta import DeltaMethod

_LARGEST_KEY = 2**63 - 1  # that torch's generators take


@dataclass(frozen=True)
class VeRA(DeltaMethod):
    """y = W·x + b ∘ B·(d ∘ A·x), with A and B random, frozen and the same for all layers.

    So Δ = diag(b)·B·diag(d)·A (section 3.1, equation 2), and only b of ``[outputs]`` and d of
    ``[rank]`` are learned: b starts at zero, d at a constant. A, ``[rank, inputs]`` of the layer
    with the most, and B, ``[outputs, rank]`` of the layer with the most, are uniform (Kaiming's,
    section 3.3); a layer takes the first columns of A and the first rows of B. They follow from a
    key, in PEFT's way, and so need not be saved; another seed of training has the same ones.

    Args:
        target_modules: as of ``LoRA``, with the same defaults.
        layers: indices of the blocks to adapt; None for all.
        trained_modules: modules trained and saved whole besides the head.
        rank: rows of A; far more than LoRA's, for each costs one trained number a layer.
        d_initial: what d starts at.
        dropout: probability of dropping an element of the adapter's input, in [0, 1); none of a
            lookup's.
        projection_prng_key: what A and B are drawn from.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "vera"
    result_name: ClassVar[str] = "vera"
    summary: ClassVar[str] = (
        "ΔW = diag(b)·B·diag(d)·A, with one random A and B for all layers: b and d, and the head"
    )
    default_learning_rate: ClassVar[float] = 4e-3
    convolves: ClassVar[bool] = True

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    projection_prng_key: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.rank, "rank")
        if not is_number(self.d_initial) or not math.isfinite(self.d_initial):
            raise UsageError(f"d_initial must be a finite number; got {self.d_initial!r}.")
        if self.d_initial == 0:
            raise UsageError("d_initial must not be 0: b starts at zero, and neither would learn.")
        check_below_one(self.dropout, "dropout")
        key = self.projection_prng_key
        if type(key) is not int or not 0 <= key <= _LARGEST_KEY:
            raise UsageError(
                f"projection_prng_key must be a whole number from 0 to 2^63 - 1; got {key!r}."
            )

    def shared_tensors(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Return A and B, ``vera_A`` and ``vera_B``, float32 and of the widest layers' shapes."""
        shapes = {
            "vera_A": (self.rank, max(layer.inputs for layer in layers)),
            "vera_B": (max(layer.outputs for layer in layers), self.rank),
        }
        # One generator, A first and float32: PEFT's order, so that a key gives its very matrices.
        generator = torch.Generator().manual_seed(self.projection_prng_key)
        shared = {}
        for name, shape in shapes.items():
            bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))
            values = torch.empty(shape, dtype=torch.float32)
            shared[name] = values.uniform_(-bound, bound, generator=generator)
        return shared

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``vera_lambda_b`` ``[outputs]``, zeros, and ``vera_lambda_d`` ``[rank]``."""
        return {
            "vera_lambda_b": torch.zeros(layer.outputs, dtype=torch.float64),
            "vera_lambda_d": torch.full((self.rank,), self.d_initial, dtype=torch.float64),
        }

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": diag(b)·B·diag(d)·A}``."""
        right, left = _projections(layer, tensors)
        b, d = tensors["vera_lambda_b"], tensors["vera_lambda_d"]
        return {"weight": layer.outer(b.unsqueeze(1) * left, d.unsqueeze(1) * right)}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + b ∘ B·(d ∘ A·dropout(x))`` in y's dtype, forming Δ of convolutions alone."""
        right, left = _projections(layer, tensors)
        if not layer.lookup:
            x = layer.drop(x.to(right.dtype), self.dropout)
        b, d = tensors["vera_lambda_b"], tensors["vera_lambda_d"]
        if layer.convolution:
            # Of such ranks a convolution's Δ is mostly cheaper than what A makes of each position.
            return layer.add_low_rank(y, x, d.unsqueeze(1) * right, b.unsqueeze(1) * left, 1.0)
        # The vectors scale what is small, and no gradient of a matrix is ever computed.
        low = d * layer.lowered(x, right)
        return y + (b * functional.linear(low, left)).to(y.dtype)


def _projections(layer: Layer, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return A ``[rank, inputs]`` and B ``[outputs, rank]`` of one layer: views, not copies."""
    return tensors["vera_A"][:, : layer.inputs], tensors["vera_B"][: layer.outputs]
