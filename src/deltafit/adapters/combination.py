"""Several LoRA adapters of one base as one: a weighted sum of their Δ, of TIES's or of DARE's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from deltafit.adapters.low_rank import (
    Change,
    MatrixLoss,
    RankChoice,
    changes_of,
    cut,
    nearest,
    spectrum_of_dense,
)
from deltafit.adapters.saving import StoredAdapter
from deltafit.adapters.seeding import generator_for
from deltafit.adapters.structure import within
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods.checks import check_choice

Way = Literal["linear", "svd", "ties", "dare"]
_SPARSE = ("ties", "dare")


@dataclass(frozen=True)
class Combination:
    """How the changes Δ₁, Δ₂, ... of one matrix become one.

    ``linear`` is Σ wᵢΔᵢ exactly, a LoRA of the summed rank: the factors are stacked, and unlike
    PEFT's "linear", which adds up A's and B's, there are no products of one adapter's B with
    another's A (PEFT's "cat" is this one). ``svd`` is the same cut to a rank, as PEFT's. ``ties``
    and ``dare`` work on the dense Δᵢ, and are then cut to a rank, as PEFT's "ties_svd" and
    "dare_linear_svd"; PEFT's "ties" and "dare_linear" prune A's and B's instead.

    Attributes:
        way: linear, svd, ties or dare.
        weights: w of each adapter; None for one divided by their number, or for ties, which takes
            a mean itself, for 1 each.
        rank: what is kept of the result; None, with no ``energy`` given, for the largest of the
            adapters' ranks. Not for linear.
        energy: share of ‖Δ‖² to keep, in place of ``rank``.
        density: share of each Δ's values that ties or dare leaves, above 0 and at most 1.
        seed: of dare's choice.

    Raises:
        UsageError: a value is out of its range or means nothing for this way.
    """

    way: Way = "linear"
    weights: tuple[float, ...] | None = None
    rank: int | None = None
    energy: float | None = None
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.way, "way", get_args(Way))
        if not all(math.isfinite(weight) for weight in self.weights or ()):
            raise UsageError(f"weights must be finite numbers; got {self.weights!r}.")
        if self.way == "linear" and (self.rank, self.energy) != (None, None):
            raise UsageError(
                "rank and energy are not for linear, which is exact at the summed rank; svd is the "
                "same cut to a rank."
            )
        if (self.rank, self.energy) != (None, None):
            RankChoice(self.rank, self.energy)
        if (self.density is None) == (self.way in _SPARSE):
            raise UsageError(
                "density, the share of values that is left, is to be given for ties and dare, and "
                f"for them alone; got {self.density!r} for {self.way}."
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"density must be above 0 and at most 1; got {self.density!r}.")

    def weights_of(self, count: int) -> tuple[float, ...]:
        """Return a weight for each of so many adapters.

        Raises:
            UsageError: there are more weights or fewer.
        """
        if self.weights is None:
            return ((1.0 if self.way == "ties" else 1 / count),) * count
        if len(self.weights) != count:
            raise UsageError(
                f"weights must be one for each adapter; got {len(self.weights)} for {count}."
            )
        return self.weights

    def choice(self, changes: Sequence[Change]) -> RankChoice:
        """Return the rank that a matrix of these changes gets."""
        if self.energy is not None:
            return RankChoice(energy=self.energy)
        return RankChoice(self.rank or max(change.rank for change in changes))


def stacked(changes: Sequence[Change], weights: Sequence[float]) -> Change:
    """Return Σ wᵢ·sᵢ·Bᵢ·Aᵢ exactly: s₁·[w₁B₁, w₂(s₂/s₁)B₂, ...]·[A₁; A₂; ...].

    The first one's scaling stands for all, so that one adapter of weight 1 keeps its bits.
    """
    factor = changes[0].factor
    lefts = [
        weight * (change.factor / factor) * change.left
        for change, weight in zip(changes, weights, strict=True)
    ]
    return Change(factor, torch.cat(lefts, 1), torch.cat([change.right for change in changes]))


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Return TIES's merge of matrices: Yadav et al., 2023 (arXiv:2306.01708), section 4.

    Of each matrix the largest values are left; the sign of their unweighted sum is elected (a tie
    is positive); and of each element the weighted values of that sign are added up and divided by
    their number. The paper trims a model's whole Δ at once; here, as in PEFT, each matrix.

    Args:
        deltas: ``[outputs, inputs]`` each.
        weights: of each.
        density: share of values that is left; at least one is.
    """
    trimmed = torch.stack([_largest(delta, density) for delta in deltas])
    elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    agreeing = trimmed.sign() == elected
    scale = torch.tensor(weights, dtype=trimmed.dtype).view(-1, 1, 1)
    return (scale * trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def _largest(delta: Tensor, density: float) -> Tensor:
    flat = delta.flatten()
    kept = flat.abs().topk(max(1, int(density * flat.numel()))).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(delta)


def dare(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generators: Sequence[Generator],
) -> Tensor:
    """Return the weighted sum of randomly thinned matrices: Yu et al., 2023 (arXiv:2311.03099).

    Each value is left with probability ``density`` (the paper's 1 - p) and divided by it, so that
    its expectation stays (section 3.2).

    Args:
        deltas: ``[outputs, inputs]`` each.
        weights: of each.
        density: probability of a value to be left.
        generators: of each one's choice.
    """
    total = torch.zeros_like(deltas[0])
    for delta, weight, generator in zip(deltas, weights, generators, strict=True):
        left = torch.rand(delta.shape, generator=generator, dtype=torch.float64) < density
        total += weight / density * delta * left
    return total


@dataclass(frozen=True)
class Combined:
    """What adapters became.

    Attributes:
        adapter: the result, without what is stored whole.
        exact: the same before it was cut to a rank.
        losses: what the cut lost of each matrix.
    """

    adapter: dict[str, Change]
    exact: dict[str, Change]
    losses: tuple[MatrixLoss, ...]


def combined_changes(
    adapters: Sequence[StoredAdapter], combination: Combination, where: Sequence[str]
) -> Combined:
    """Combine the low-rank changes of adapters; where one does not adapt a module its Δ is zero.

    Args:
        adapters: of one base.
        combination: how.
        where: each one's folder, for the sentences.

    Raises:
        DeltafitError: one is of another method than LoRA, or stores a module whole that another
            adapts.
        UsageError: there is not one weight for each.
    """
    weights = combination.weights_of(len(adapters))
    by_adapter = [changes_of(a, place) for a, place in zip(adapters, where, strict=True)]
    names = list(dict.fromkeys(name for changes in by_adapter for name in changes))
    _refuse_both(names, adapters, where)
    result: dict[str, Change] = {}
    exact: dict[str, Change] = {}
    losses: list[MatrixLoss] = []
    for name in names:
        present = [i for i, changes in enumerate(by_adapter) if name in changes]
        changes = [by_adapter[i][name] for i in present]
        own = [weights[i] for i in present]
        if combination.way not in _SPARSE:
            exact[name] = stacked(changes, own)
            # Linear keeps all of it.
            choice = (
                RankChoice(exact[name].rank)
                if combination.way == "linear"
                else combination.choice(changes)
            )
            result[name], loss = nearest(name, exact[name], choice)
        else:
            exact[name], result[name], loss = _sparse(name, changes, own, present, combination)
        losses.append(loss)
    return Combined(result, exact, tuple(losses))


def _sparse(
    name: str,
    changes: Sequence[Change],
    weights: Sequence[float],
    places: Sequence[int],
    combination: Combination,
) -> tuple[Change, Change, MatrixLoss]:
    """Return ties's or dare's result for one module at its full rank, cut, and what that loses."""
    deltas = [change.dense() for change in changes]
    density, dtype = combination.density, changes[0].left.dtype
    assert density is not None
    if combination.way == "ties":
        dense = ties(deltas, weights, density)
    else:
        chosen = [generator_for(combination.seed, f"{name}/dare/{place}") for place in places]
        dense = dare(deltas, weights, density, chosen)
    spectrum = spectrum_of_dense(dense)
    whole, _ = cut(name, spectrum, RankChoice(len(spectrum.values)), 1.0, dtype)
    kept, loss = cut(name, spectrum, combination.choice(changes), 1.0, dtype)
    return whole, kept, loss


def _refuse_both(
    modules: Sequence[str], adapters: Sequence[StoredAdapter], where: Sequence[str]
) -> None:
    for adapter, place in zip(adapters, where, strict=True):
        for parameter in adapter.replaced:
            module = next((name for name in modules if within(parameter, name)), None)
            if module is not None:
                raise DeltafitError(
                    f"{place} stores {parameter!r} whole, and another of the adapters has a "
                    f"low-rank change of {module!r}; the two cannot be combined."
                )


def combined_whole(
    adapters: Sequence[StoredAdapter],
    weights: Sequence[float],
    base: Mapping[str, Tensor],
    head: Sequence[str],
    head_of: int | None,
) -> dict[str, Tensor]:
    """Combine what adapters store whole.

    The head is the weighted mean of theirs, or one's. What stands beside it is combined as a change
    of the base's, P₀ + Σ wᵢ(Pᵢ - P₀), whatever the way: ties and dare are for matrices.

    Args:
        adapters: of one base, each with the same head.
        weights: of each.
        base: the base's parameters by name.
        head: names of the head's parameters.
        head_of: whose head is taken; None for the mean.

    Raises:
        UsageError: the weights add up to zero, so that there is no mean.
    """
    shares = [float(index == head_of) for index in range(len(adapters))]
    if head_of is None:
        total = math.fsum(weights)
        if abs(total) < 1e-9:
            raise UsageError(
                "weights add up to zero, so there is no mean of the heads: name the adapter whose "
                "head is taken with --head."
            )
        shares = [weight / total for weight in weights]
    names = dict.fromkeys(name for adapter in adapters for name in adapter.replaced)
    whole = {}
    for name in names:
        start: Tensor | float = 0.0 if name in head else base[name].detach().cpu().double()
        own = shares if name in head else weights
        total_change: Tensor = sum(  # type: ignore[assignment]  # not the 0 of an empty sum
            share * (adapter.tensors[name].double() - start)
            for adapter, share in zip(adapters, own, strict=True)
            if name in adapter.replaced
        )
        dtype = next(a.tensors[name].dtype for a in adapters if name in a.replaced)
        whole[name] = (start + total_change).to(dtype)
    return whole
