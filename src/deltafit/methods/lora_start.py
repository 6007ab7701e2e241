"""Where LoRA's two matrices start: at random, or in the weight that they change."""

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from deltafit.errors import DeltafitError
from deltafit.methods.base import Layer

Initialisation = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"]
FROM_WEIGHT = ("pissa", "olora")
"""Starting points with B·A other than zero, which is taken off again: Δ = s·(B·A - B₀·A₀)."""


def random_factor(
    name: Initialisation, shape: tuple[int, int], rank: int, generator: Generator
) -> Tensor:
    """Return the one factor that starts at random, float64 ``[rows, columns]``.

    Args:
        name: one that starts neither from the weight nor from data.
        shape: of the factor; one side is the rank.
        rank: of Δ.
        generator: of the random numbers.
    """
    values = torch.empty(shape, dtype=torch.float64)
    if name == "kaiming":
        bound = 1 / math.sqrt(shape[1])
        return values.uniform_(-bound, bound, generator=generator)
    if name == "gaussian":
        return values.normal_(0, 1 / math.sqrt(rank), generator=generator)
    values.normal_(generator=generator)
    q, r = torch.linalg.qr(values if shape[0] >= shape[1] else values.T)
    # QR chooses signs; with those of R on its diagonal taken back, Q is uniform over rotations.
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    oriented: Tensor = q if shape[0] >= shape[1] else q.T
    return oriented


def factors_of_weight(
    name: Initialisation, layer: Layer, rank: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Return A₀ ``[rank, inputs]`` and B₀ ``[outputs, rank]``, float64, with s·B₀·A₀ in the weight.

    Args:
        name: ``"pissa"``: the largest singular values and vectors, √S to each side (Meng et al.,
            arXiv:2404.02948, section 3); ``"olora"``: the first columns of Q and rows of R of the
            weight's QR decomposition (Büyükakyüz, arXiv:2406.01775, algorithm 1).
        layer: whose weight.
        rank: at most the smaller side of the weight.
        factor: the scaling s.

    Raises:
        DeltafitError: the rank is larger than that.
    """
    _check_rank(name, layer, rank)
    weight = layer.view().detach().cpu().float()
    matrix = weight.T if layer.lookup else weight  # [outputs, inputs]
    if name == "pissa":
        return _nearest(matrix, rank, factor)
    q, r = torch.linalg.qr(matrix)
    return _shared(q[:, :rank], r[:rank], factor)


def factors_of_error(
    error: Tensor, layer: Layer, rank: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Return A and B with s·B·A the matrix of their rank that is nearest to what rounding took.

    LoftQ's algorithm 1 with T = 1 (Li et al., arXiv:2310.08659): Q = quantise(W), and s·B·A is the
    truncated singular value decomposition of W - Q.

    Args:
        error: W - Q, ``[outputs, inputs]``.
        layer: whose weight was W.
        rank: at most the smaller side of the weight.
        factor: the scaling s.

    Raises:
        DeltafitError: the rank is larger than that.
    """
    _check_rank("loftq", layer, rank)
    return _nearest(error.cpu().float(), rank, factor)


def _check_rank(name: Initialisation, layer: Layer, rank: int) -> None:
    largest = min(layer.inputs, layer.outputs)
    if rank > largest:
        raise DeltafitError(
            f"Starting from the weight ({name}) takes a rank of at most {largest} there, the "
            f"smaller side of the weight; it is {rank}."
        )


def _nearest(matrix: Tensor, rank: int, factor: float) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return _shared(u[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * v[:rank], factor)


def _shared(left: Tensor, right: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Return right and left in float64, each divided by √s."""
    share = 1 / math.sqrt(factor)
    return share * right.double(), share * left.double()
