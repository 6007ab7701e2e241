"""LoRA along its inputs' variance: Paischer et al., "EVA", 2024 (arXiv:2410.07170), section 3."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from deltafit.errors import DeltafitError
from deltafit.methods.base import Tensors


def principal_directions(statistic: Tensors, count: int) -> Tensor:
    """Return the directions of a layer's inputs with the largest variance, largest first.

    Args:
        statistic: of ``"inputs"``.
        count: at most as many as the layer has inputs.

    Returns:
        Orthonormal rows, float64 ``[count, inputs]``.

    Raises:
        DeltafitError: there are not so many.
    """
    covariance = _covariance(statistic)
    if count > len(covariance):
        raise DeltafitError(
            f"Starting along the inputs' variance (eva) takes a rank of at most {len(covariance)} "
            f"there, as many as the layer has inputs; it is {count}."
        )
    rows: Tensor = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:count]
    # A direction has no sign: of its entries, the largest in size is made positive.
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return rows * signs


def explained_shares(statistic: Tensors) -> Tensor:
    """Return the share of the variance along each principal direction, float64, falling.

    Args:
        statistic: of ``"inputs"``.

    Returns:
        ``[inputs]``; zeros where nothing varies.
    """
    variances: Tensor = torch.linalg.eigvalsh(_covariance(statistic)).flip(0).clamp(min=0)
    return variances / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)


def redistributed(
    shares: Mapping[str, Tensor], ranks: Mapping[str, int], rho: float
) -> dict[str, int]:
    """Return new ranks with the same sum: a rank goes where a direction explains most.

    Args:
        shares: module name → ``explained_shares``.
        ranks: module name → rank before.
        rho: no rank becomes larger than so many times what it was, rounded. Every layer keeps its
            first direction, where the paper may leave a layer out.
    """
    rest = [
        (float(share), name)
        for name, own in shares.items()
        for share in own[1 : round(rho * ranks[name])]
    ]
    rest.sort(key=lambda item: -item[0])  # of equal ones, the earlier layer's comes first
    given = Counter(name for _, name in rest[: sum(ranks.values()) - len(ranks)])
    return {name: 1 + given[name] for name in ranks}


def _covariance(statistic: Tensors) -> Tensor:
    mean = statistic["mean"]
    return statistic["second_moment"] - torch.outer(mean, mean)
