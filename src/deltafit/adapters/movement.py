"""How far an adapter moved each matrix from its base, and in how many directions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import layer_state
from deltafit.adapters.low_rank import spectrum_of_product
from deltafit.adapters.model import model_adapters
from deltafit.methods import DeltaMethod, LoRA

# Of a dense Δ; the time grows with the cube, and at 1024 it is a quarter of a second on one core.
LARGEST_SIDE = 1024


@dataclass(frozen=True)
class MatrixChange:
    """How far one matrix moved.

    Attributes:
        name: the module.
        shape: of the weight's view, ``[outputs, inputs]`` (``[vocabulary, width]`` of a lookup).
        delta_norm: Frobenius norm of ΔW.
        weight_norm: Frobenius norm of W.
        effective_rank: of ΔW; see ``effective_rank``. None of a dense ΔW whose smaller side is
            above ``LARGEST_SIDE``.
    """

    name: str
    shape: tuple[int, ...]
    delta_norm: float
    weight_norm: float
    effective_rank: float | None

    @property
    def share(self) -> float:
        """ΔW's norm as a share of W's."""
        return self.delta_norm / self.weight_norm if self.weight_norm else float("inf")


def effective_rank(values: Tensor) -> float:
    """Return exp(-Σ p·log p) of the singular values' shares p = σ/Σσ; 0 of a Δ that is zero.

    It lies between 1 and the rank: k values alike and the rest zero give k. Source: Roy and
    Vetterli (2007), "The effective rank: a measure of effective dimensionality", EUSIPCO.

    Args:
        values: singular values, ``[k]``, in float64.
    """
    present = values[values > 0]
    shares = present / present.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(present) else 0.0


@torch.no_grad()
def layer_changes(model: nn.Module, name: str) -> tuple[MatrixChange, ...]:
    """Return the change of every layer that carries an adapter of a method with a Δ.

    Args:
        model: with the adapter on it.
        name: of the adapter.
    """
    adapter = model_adapters(model).adapters[name]
    changes = []
    for target in adapter.targets if isinstance(adapter.method, DeltaMethod) else ():
        layer = layer_state(model.get_submodule(target))
        delta = layer.deltas(name)["weight"].detach().double()
        weight_norm = float(layer.view.view().detach().double().norm())
        factors = layer.tensors(name) if type(adapter.method) is LoRA else {}
        rank = _of_factors(factors, delta.shape) or _of_dense(delta)
        changes.append(
            MatrixChange(target, tuple(delta.shape), float(delta.norm()), weight_norm, rank)
        )
    return tuple(changes)


@torch.no_grad()
def replaced_changes(
    model: nn.Module, name: str, head: Collection[str]
) -> tuple[MatrixChange, ...]:
    """Return the change of every matrix that an adapter stores whole, the head's apart.

    Args:
        model: with the adapter on it.
        name: of the adapter.
        head: names of the head's parameters: new, so that there is nothing they moved from.
    """
    state = model_adapters(model)
    changes = []
    for parameter, trained in state.adapters[name].replaced.items():
        if trained.ndim < 2 or parameter in head or parameter not in state.base:
            continue
        base = state.base[parameter].detach().double().flatten(1)
        delta = trained.detach().double().flatten(1) - base
        module = parameter.removesuffix(".weight")
        norms = float(delta.norm()), float(base.norm())
        changes.append(MatrixChange(module, tuple(delta.shape), *norms, _of_dense(delta)))
    return tuple(changes)


def _of_factors(factors: Mapping[str, Tensor], shape: torch.Size) -> float | None:
    """Return the effective rank of B·A where that is the Δ of ``shape``, but for its scaling."""
    left, right = factors.get("lora_B"), factors.get("lora_A")
    if left is None or right is None or (left.shape[0], *right.shape[1:]) != shape:
        return None  # of a convolution in groups, Δ is several products
    return effective_rank(spectrum_of_product(left, right).values)


def _of_dense(delta: Tensor) -> float | None:
    """Return the effective rank of a dense matrix, from the eigenvalues of its smaller product."""
    rows, columns = delta.flatten(1).shape
    if min(rows, columns) > LARGEST_SIDE:
        return None
    flat = delta.flatten(1)
    product = flat @ flat.T if rows <= columns else flat.T @ flat
    squares = torch.linalg.eigvalsh(product)
    # What is below rounding of the largest is no direction: it would count as hundreds of them.
    squares = squares[squares > squares[-1] * len(squares) * torch.finfo(squares.dtype).eps]
    return effective_rank(squares.sqrt())
