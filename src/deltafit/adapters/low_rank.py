"""Changes of low rank, Δ = s·B·A, by their singular values: what each rank keeps and what it loses.

The leading singular triplets are the nearest change of their rank, and the energy that is lost is
the sum of the other values' squares (Eckart and Young, 1936). The triplets come from the factors:
with B = Q₁R₁ and Aᵀ = Q₂R₂, B·A = Q₁·(R₁·R₂ᵀ)·Q₂ᵀ, and the SVD is that of the small core. Δ itself
is never formed.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deltafit.adapters.peft_format import expression_for
from deltafit.adapters.saving import StoredAdapter
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import IA3, DeltaMethod, DoRA, Insertion, LoRA, VeRA
from deltafit.methods.checks import check_whole
from deltafit.methods.lora import longest_first

Value = TypeVar("Value", int, float)
_DENSE = "so its Δ has the full rank."
_NO_PRODUCT = "Its Δ is no product s·B·A."
_WHY: dict[type[DeltaMethod], str] = {
    DoRA: f"DoRA scales each row of W + s·B·A, {_DENSE}",
    IA3: f"(IA)³ scales whole outputs or inputs of W, {_DENSE}",
    VeRA: "VeRA's factors are drawn for all layers together, and the folder holds vectors alone.",
}
_FACTORS = ("lora_B", "lora_A")


@dataclass(frozen=True)
class Spectrum:
    """U·diag(values)·V, the singular value decomposition of a matrix, in float64.

    Attributes:
        left: U, ``[outputs, k]``; its columns are orthonormal.
        values: ``[k]``, the largest first.
        right: V, ``[k, inputs]``; its rows are orthonormal.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def lost(self) -> Tensor:
        """Return the energy, a squared Frobenius norm, that ranks 0 to k lose, ``[k + 1]``."""
        squares = self.values.square().flip(0)  # the small ones are added first
        return torch.cat((squares.new_zeros(1), squares.cumsum(0))).flip(0)

    def errors(self) -> Tensor:
        """Return ‖Δ - Δᵣ‖ / ‖Δ‖ for r from 0 to k, ``[k + 1]``; zeros where Δ is zero."""
        lost = self.lost()
        return (lost / lost[0]).sqrt() if lost[0] > 0 else lost

    def rank_for(self, energy: float) -> int:
        """Return the smallest rank, at least 1, that keeps a share of the energy, up to rounding.

        Args:
            energy: the share, above 0 and at most 1.
        """
        lost = self.lost()
        rounding = (len(lost) * torch.finfo(lost.dtype).eps) ** 2
        allowed = ((1 - energy) + rounding) * lost[0]
        return max(1, int((lost <= allowed).nonzero()[0]))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return B ``[outputs, rank]`` and A ``[rank, inputs]``, whose product is the nearest.

        Each has the root of the values, so that neither is far larger than the other.
        """
        roots = self.values[:rank].sqrt()
        return self.left[:, :rank] * roots, roots.unsqueeze(1) * self.right[:rank]


def spectrum_of_product(left: Tensor, right: Tensor) -> Spectrum:
    """Return the spectrum of ``left @ right``, without forming it.

    Args:
        left: ``[outputs, r]``.
        right: ``[r, inputs]``.
    """
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return Spectrum(q_left @ u, values, v @ q_right.T)


def spectrum_of_dense(delta: Tensor) -> Spectrum:
    """Return the spectrum of a matrix, ``[outputs, inputs]``."""
    return Spectrum(*torch.linalg.svd(delta.double(), full_matrices=False))


@dataclass(frozen=True)
class Change:
    """One module's Δ = factor · left · right.

    Attributes:
        factor: the scaling s.
        left: B, ``[outputs, rank]``.
        right: A, ``[rank, inputs]``.
    """

    factor: float
    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number of columns of B."""
        return self.left.shape[1]

    def dense(self) -> Tensor:
        """Return Δ in float64, ``[outputs, inputs]``."""
        return self.factor * (self.left.double() @ self.right.double())


@dataclass(frozen=True)
class RankChoice:
    """How much of each change is kept: a common rank, or each one's smallest for a share of energy.

    Attributes:
        rank: at least 1; a change of a smaller rank stays as it is.
        energy: share of ‖Δ‖² that each change keeps, above 0 and at most 1.

    Raises:
        UsageError: not just one of the two is given, or it is out of its range.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise UsageError(
                "rank, a whole number, or energy, a share to keep such as 0.99: give one of them."
            )
        if self.rank is not None:
            check_whole(self.rank, "rank")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"energy must be above 0 and at most 1; got {self.energy!r}.")

    def of(self, spectrum: Spectrum) -> int:
        """Return the rank that a matrix gets, at most the number of its singular values."""
        if self.rank is not None:
            return min(self.rank, len(spectrum.values))
        assert self.energy is not None
        return spectrum.rank_for(self.energy)


@dataclass(frozen=True)
class MatrixLoss:
    """What a rank keeps of one matrix's Δ.

    Attributes:
        name: the module.
        rank: that was kept.
        full_rank: singular values that there were.
        energy: ‖Δ‖².
        lost: ‖Δ - what was kept‖².
    """

    name: str
    rank: int
    full_rank: int
    energy: float
    lost: float

    @property
    def error(self) -> float:
        """The relative error in the Frobenius norm."""
        return math.sqrt(self.lost / self.energy) if self.energy > 0 else 0.0


def energy_lost(losses: Iterable[MatrixLoss]) -> float:
    """Return the share of all matrices' energy that was lost, 0 to 1."""
    losses = tuple(losses)
    total = sum(loss.energy for loss in losses)
    return sum(loss.lost for loss in losses) / total if total > 0 else 0.0


def nearest(name: str, change: Change, choice: RankChoice) -> tuple[Change, MatrixLoss]:
    """Return a module's change cut to a rank, under the same scaling, and what that loses.

    What needs no cut comes back as it is, bit for bit.
    """
    spectrum = spectrum_of_product(change.left, change.right)
    if choice.rank is not None and choice.rank >= change.rank:
        energy = change.factor**2 * float(spectrum.lost()[0])
        return change, MatrixLoss(name, change.rank, change.rank, energy, 0.0)
    return cut(name, spectrum, choice, change.factor, change.left.dtype)


def cut(
    name: str, spectrum: Spectrum, choice: RankChoice, factor: float, dtype: torch.dtype
) -> tuple[Change, MatrixLoss]:
    """Return ``factor`` times a matrix as a change of a rank in a dtype, and what that loses."""
    rank, lost = choice.of(spectrum), factor**2 * spectrum.lost()
    left, right = spectrum.factors(rank)
    kept = Change(factor, left.to(dtype), right.to(dtype))
    return kept, MatrixLoss(name, rank, len(spectrum.values), float(lost[0]), float(lost[rank]))


def changes_of(stored: StoredAdapter, where: str) -> dict[str, Change]:
    """Return each adapted module's change.

    Args:
        stored: an adapter whose Δ is s·B·A.
        where: its folder, for the sentence.

    Raises:
        DeltafitError: it is of another method (the sentence says what can be done), lacks a factor,
            or holds values that are not finite.
    """
    method = stored.method
    if type(method) is not LoRA:
        raise DeltafitError(
            f"{where} holds an adapter of the method {method.command_line_name}. {_instead(method)}"
        )
    changes: dict[str, Change] = {}
    problems = []
    for name in stored.tensors:
        module, _, leaf = name.rpartition(".")
        if leaf not in _FACTORS or name in stored.replaced or module in changes:
            continue
        left, right = (stored.tensors.get(f"{module}.{factor}") for factor in _FACTORS)
        if left is None or right is None or left.shape[1:] != right.shape[:1]:
            problems.append(f"{module!r} has no pair of factors that fit")
        elif not bool(left.isfinite().all() and right.isfinite().all()):
            problems.append(f"{module!r} holds values that are not finite")
        else:
            changes[module] = Change(method.for_module(module).factor, left, right)
    if problems or not changes:
        said = problems[0] if problems else "it holds no low-rank change"
        raise DeltafitError(f"{where} is damaged: {said}. Restore a copy or train it again.")
    return changes


def _instead(method: object) -> str:
    """Return why there is no s·B·A in a method's adapter, and what can be done."""
    if isinstance(method, DeltaMethod):
        why = next((text for kind, text in _WHY.items() if isinstance(method, kind)), _NO_PRODUCT)
        return (
            f"{why} deltafit merge writes it exactly, into a whole checkpoint; deltafit extract "
            "makes of it a LoRA of the rank you choose, or with --dense an adapter of all of it."
        )
    if isinstance(method, Insertion):
        return (
            "It adds computation to the model, which no Δ of its weights could do; use it as it "
            "is, with its base."
        )
    return (
        "It holds whole parameters and no low-rank Δ; deltafit extract makes a LoRA of what "
        "changed in them."
    )


def stored_of(
    changes: Mapping[str, Change], whole: Mapping[str, Tensor], *, like: LoRA | None = None
) -> StoredAdapter:
    """Return an adapter of the given changes, each with its own rank and scaling.

    Args:
        changes: by module name; at least one.
        whole: parameters stored whole, by name.
        like: whose targets, dropout and modules trained whole it takes over; None names each
            module.
    """
    ranks = {name: change.rank for name, change in changes.items()}
    factors = {name: change.factor for name, change in changes.items()}
    targets = expression_for(changes)
    method = LoRA(
        target_modules=targets if like is None else like.target_modules,
        layers=None if like is None else like.layers,
        trained_modules=() if like is None else like.trained_modules,
        dropout=0.0 if like is None else like.dropout,
        rank=max(ranks.values()),
        alpha=max(factors.values()),
        scaling="alpha",
        rank_pattern=_pattern(ranks),
        alpha_pattern=_pattern(factors),
    )
    tensors = {}
    for name, change in changes.items():
        tensors[f"{name}.lora_A"] = change.right.contiguous()
        tensors[f"{name}.lora_B"] = change.left.contiguous()
    return StoredAdapter(method, tensors | dict(whole), tuple(whole))


def _pattern(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Return each module's value; none where all are alike."""
    return longest_first(values) if len(set(values.values())) > 1 else ()
