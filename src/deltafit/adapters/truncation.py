"""Cutting a trained LoRA adapter to a smaller rank, matrix by matrix."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from deltafit.adapters.low_rank import (
    MatrixLoss,
    RankChoice,
    changes_of,
    nearest,
    spectrum_of_product,
    stored_of,
)
from deltafit.adapters.saving import StoredAdapter
from deltafit.methods import LoRA


@dataclass(frozen=True)
class RankErrors:
    """The relative error ‖ΔW - ΔWᵣ‖ / ‖ΔW‖ of every rank, in the Frobenius norm.

    Attributes:
        matrices: module → errors of ranks 0, 1, ..., up to the matrix's own, which loses nothing.
        overall: of all matrices together at a common rank, as long as the longest of them.
    """

    matrices: dict[str, tuple[float, ...]]
    overall: tuple[float, ...]


def rank_errors(stored: StoredAdapter, where: str) -> RankErrors:
    """Return what cutting an adapter to each rank would lose; nothing is changed.

    Args:
        stored: an adapter whose Δ is s·B·A.
        where: its folder, for the sentence.

    Raises:
        DeltafitError: it was trained with another method.
    """
    matrices: dict[str, tuple[float, ...]] = {}
    lost: dict[str, torch.Tensor] = {}
    for name, change in changes_of(stored, where).items():
        spectrum = spectrum_of_product(change.left, change.right)
        matrices[name] = tuple(spectrum.errors().tolist())
        lost[name] = change.factor**2 * spectrum.lost()
    longest = max(map(len, lost.values()))
    total = torch.zeros(longest, dtype=torch.float64)
    for own in lost.values():
        total[: len(own)] += own
    overall = (total / total[0]).sqrt() if total[0] > 0 else total
    return RankErrors(matrices, tuple(overall.tolist()))


def truncated(
    stored: StoredAdapter, choice: RankChoice, where: str
) -> tuple[StoredAdapter, tuple[MatrixLoss, ...]]:
    """Return an adapter cut to smaller ranks, and what each matrix loses.

    Its scalings, and what it stores whole, stay; so does a matrix whose rank is small enough, bit
    for bit.

    Args:
        stored: an adapter whose Δ is s·B·A.
        choice: the rank.
        where: the adapter's folder, for the sentence.

    Raises:
        DeltafitError: it was trained with another method.
    """
    changes = changes_of(stored, where)
    cuts = {name: nearest(name, change, choice) for name, change in changes.items()}
    assert isinstance(stored.method, LoRA)
    kept = stored_of({name: one for name, (one, _) in cuts.items()}, {}, like=stored.method)
    rest = {n: t for n, t in stored.tensors.items() if n.rpartition(".")[0] not in changes}
    result = replace(stored, method=kept.method, tensors=kept.tensors | rest)
    return result, tuple(loss for _, loss in cuts.values())


def without(stored: StoredAdapter, modules: Collection[str], where: str) -> StoredAdapter:
    """Return an adapter whose Δ is zero in some modules; all else stays, bit for bit.

    Args:
        stored: an adapter whose Δ is s·B·A.
        modules: names of adapted modules.
        where: the adapter's folder, for the sentence.

    Raises:
        DeltafitError: it was trained with another method.
    """
    changes = changes_of(stored, where)
    zeros = {f"{name}.lora_B": torch.zeros_like(changes[name].left) for name in modules}
    return replace(stored, tensors=stored.tensors | zeros)
