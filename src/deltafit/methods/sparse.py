"""Sparse updates, a fixed mask: Bhardwaj et al., "SHiRA", 2024 (arXiv:2406.13175), section 3."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor

from deltafit.errors import DeltafitError, UsageError
from deltafit.methods.base import GeneratorFor, Layer, Statistic, Tensors
from deltafit.methods.checks import check_above_zero, check_choice, is_number
from deltafit.methods.delta import DeltaMethod
from deltafit.methods.masked import MaskedProduct, placed

Mask = Literal["random", "magnitude", "gradient"]
VALUES, INDICES = "sparse_values", "sparse_indices"


@dataclass(frozen=True)
class Sparse(DeltaMethod):
    """Δ = α·(M ⊙ Θ): a fixed share of each weight's entries is trained, the others stay.

    The mask M is chosen once, Θ starts at zero, and Δ may have any rank. What is stored are the k
    trained values and where they stand, 8 bytes an entry, so the file grows with the density: 0.2
    of a 384 × 384 weight is as large as LoRA of rank 77. Training multiplies by a dense Δ beside
    the weight, which is slower than LoRA; merged, it costs nothing.

    Args:
        density: share of each weight's entries that are trained, above 0 and at most 1; at least
            one entry is.
        alpha: α.
        mask: which entries: ``"random"``, as the seed has it; ``"magnitude"``, the largest |W|; or
            ``"gradient"``, the largest |∂loss/∂W|, of the loss summed over some training texts.
            Such an adapter is saved as one with a random mask: its indices are all that counts.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "sparse"
    result_name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = (
        "ΔW = α·(M ⊙ Θ): a fifth of the entries of each chosen weight, and the head"
    )
    default_learning_rate: ClassVar[float] = 5e-4
    size_setting: ClassVar[str | None] = "density"

    density: float = 0.2
    alpha: float = 1.0
    mask: Mask = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.density) or not 0 < self.density <= 1:
            raise UsageError(
                "density is the share of the weights that are trained, above 0 and at most 1; got "
                f"{self.density!r}."
            )
        check_above_zero(self.alpha, "alpha")
        check_choice(self.mask, "mask", get_args(Mask))

    def with_size(self, size: int) -> "Sparse":
        """Return the method with a density of so many ten-thousandths, at most all entries."""
        return replace(self, density=min(1.0, size / 10_000))

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``sparse_values`` ``[k]``, zeros, and ``sparse_indices`` ``[k]``, rising.

        An index counts the entries of the weight's view row by row.
        """
        if self.mask == "random":
            size = layer.inputs * layer.outputs
            return _starting_at(_random(size, self._count(layer), generator_for(INDICES)), size)
        return self._largest(layer.view().detach().cpu(), layer)

    def statistic(self) -> Statistic | None:
        """Return ``"gradient"`` for a mask that is chosen by it."""
        return "gradient" if self.mask == "gradient" else None

    def initialise_from(
        self, statistic: Tensors, layer: Layer, generator_for: GeneratorFor
    ) -> dict[str, Tensor]:
        """Return the tensors of ``initialise``, for the mask by gradient too.

        Raises:
            DeltafitError: the gradient is zero or not finite, and says nothing of the entries.
        """
        if self.mask != "gradient":
            return self.initialise(layer, generator_for)
        gradient = statistic["gradient"]
        size = float(gradient.abs().max())
        if not 0 < size < math.inf:
            raise DeltafitError(
                f"The largest gradient of a weight's entries is {size:g}, so no mask can be chosen "
                "by it. Below a new pooled head, which starts at zero, all are zero: let the head "
                "start from a probe (--head-start probe), or take mask=random or magnitude."
            )
        return self._largest(gradient, layer)

    def frozen_tensors(self, layer: Layer) -> tuple[str, ...]:
        """Return the indices: the mask is fixed."""
        return (INDICES,)

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": α·(M ⊙ Θ)}``."""
        sides = (layer.outputs, layer.inputs)
        shape = (sides[1], sides[0]) if layer.lookup else sides
        return {"weight": placed(self.alpha * tensors[VALUES], tensors[INDICES], shape)}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + Δ·x`` in y's dtype: one dense product, whose Δ is not kept."""
        change: Tensor
        if layer.lookup:
            change = layer.lowered(x, self.deltas(layer, tensors)["weight"].T)
        else:
            values = self.alpha * tensors[VALUES]
            change = MaskedProduct.apply(
                x.to(values.dtype), values, tensors[INDICES], layer.outputs
            )
        return y + change.to(y.dtype)

    def kept(self, layers: Mapping[str, Tensors]) -> "Sparse":
        """Return the method with a mask that takes no data to begin with."""
        return replace(self, mask="random") if self.mask == "gradient" else self

    def _count(self, layer: Layer) -> int:
        return max(1, round(self.density * layer.inputs * layer.outputs))

    def _largest(self, scores: Tensor, layer: Layer) -> dict[str, Tensor]:
        """Return the tensors for the entries with the largest |score|, of the view's shape."""
        chosen = scores.flatten().abs().topk(self._count(layer)).indices
        return _starting_at(chosen, scores.numel())


def tensors_of(delta: Tensor) -> dict[str, Tensor]:
    """Return the tensors with which Δ, under α = 1 and density 1, is the given one.

    Args:
        delta: in the view of the weight.
    """
    started = _starting_at(torch.arange(delta.numel()), delta.numel())
    return {**started, VALUES: delta.flatten()}


def _random(size: int, count: int, generator: Generator) -> Tensor:
    """Return ``count`` of the numbers below ``size``, each choice as likely as any other."""
    return torch.randperm(size, generator=generator)[:count]


def _starting_at(indices: Tensor, size: int) -> dict[str, Tensor]:
    """Return the tensors of a layer whose weight has ``size`` entries: nothing is changed yet."""
    smallest = torch.int32 if size <= torch.iinfo(torch.int32).max else torch.int64
    return {
        VALUES: torch.zeros(len(indices), dtype=torch.float64),
        INDICES: indices.sort().values.to(smallest),
    }
