"""Sparse updates: which entries a mask takes, what the backward pass keeps, what is refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deltafit.errors import UsageError
from deltafit.methods import LoRA, Sparse
from deltafit.methods.masked import MaskedProduct, placed


def layer_of(weight: Tensor) -> Any:
    outputs, inputs = weight.shape
    return SimpleNamespace(inputs=inputs, outputs=outputs, lookup=False, view=lambda: weight)


def started(method: Sparse, weight: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return method.initialise(layer_of(weight), lambda name: torch.Generator().manual_seed(seed))


WEIGHT = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mask", ["random", "magnitude"])
@pytest.mark.parametrize(("density", "count"), [(0.2, 240), (0.0001, 1), (1, 1200), (0.333, 400)])
def test_as_many_different_entries_as_the_density_says(
    mask: Any, density: float, count: int
) -> None:
    tensors = started(Sparse(density=density, mask=mask), WEIGHT)
    values, indices = tensors["sparse_values"], tensors["sparse_indices"]
    assert indices.dtype == torch.int32 and values.shape == indices.shape == (count,)
    assert not values.any()
    assert bool((indices.diff() > 0).all()) and indices[0] >= 0 and indices[-1] < 1200


def test_the_largest_weights() -> None:
    tensors = started(Sparse(density=0.05, mask="magnitude"), WEIGHT)
    expected = np.argsort(-np.abs(WEIGHT.numpy().ravel()))[:60]
    assert set(tensors["sparse_indices"].tolist()) == set(expected.tolist())


def test_a_random_mask_depends_on_the_seed_alone_and_takes_all_places_alike() -> None:
    method = Sparse(density=0.5)
    first = started(method, WEIGHT)["sparse_indices"]
    assert torch.equal(first, started(method, 2 * WEIGHT)["sparse_indices"])
    assert not torch.equal(first, started(method, WEIGHT, seed=1)["sparse_indices"])
    taken = torch.zeros(1200)
    for seed in range(200):
        taken[started(method, WEIGHT, seed)["sparse_indices"].long()] += 1
    # A binomial count of mean 100 and deviation 7.1 in each of 1200 places.
    assert taken.min() > 60 and taken.max() < 140


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([0, 7, 8, 19], dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda x, values: MaskedProduct.apply(x, values, indices, 4), (x, values)
    )


def test_no_dense_update_is_kept_for_the_backward_pass() -> None:
    x, values = torch.randn(2, 30, requires_grad=True), torch.randn(240, requires_grad=True)
    indices = started(Sparse(), WEIGHT)["sparse_indices"]
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        MaskedProduct.apply(x, values, indices, 40)
    assert sorted(kept) == [60, 240, 240]


def test_in_half_precision_gradients_have_their_tensors_dtypes() -> None:
    x, values = torch.randn(8, 30, requires_grad=True), torch.randn(240, requires_grad=True)
    indices = started(Sparse(), WEIGHT)["sparse_indices"]
    exact = x @ placed(values, indices, (40, 30)).T
    expected = torch.autograd.grad(exact, (x, values), torch.ones_like(exact))
    with torch.autocast("cpu", torch.bfloat16):
        y = MaskedProduct.apply(x, values, indices, 40)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y, (x, values), torch.ones_like(y))
    for gradient, exactly in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, exactly, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"density": 0}, "density is the share .* above 0 and at most 1; got 0"),
        ({"density": 1.5}, "got 1.5"),
        ({"density": True}, "got True"),
        ({"alpha": float("inf")}, "alpha must be a finite number above 0"),
        ({"mask": "smallest"}, "mask must be one of random, magnitude"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Sparse(**settings)


def test_a_fraction_as_loras_rank_is_told_where_to_go() -> None:
    with pytest.raises(UsageError, match=r"random 20% of the weights .* sparse:density=0\.2 here"):
        LoRA(rank=0.2)  # type: ignore[arg-type]  # what is refused
