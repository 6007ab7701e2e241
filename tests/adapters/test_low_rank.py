"""Singular values from the factors, against numpy's of the dense product; what each rank loses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltafit.adapters.low_rank import (
    Change,
    RankChoice,
    energy_lost,
    nearest,
    spectrum_of_dense,
    spectrum_of_product,
)
from deltafit.errors import UsageError

SIZES = st.integers(1, 9)


def factors(outputs: int, inputs: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    return left * torch.logspace(0, -2, rank, dtype=torch.float64), right


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 10**6))
def test_the_singular_values_are_those_of_the_product(
    outputs: int, inputs: int, rank: int, seed: int
) -> None:
    left, right = factors(outputs, inputs, rank, seed)
    dense = (left @ right).numpy()
    expected = np.linalg.svd(dense, compute_uv=False)
    found = spectrum_of_product(left, right)
    k = min(outputs, inputs, rank)
    assert len(found.values) == k
    np.testing.assert_allclose(found.values.numpy(), expected[:k], atol=1e-12)
    again = found.left @ torch.diag(found.values) @ found.right
    np.testing.assert_allclose(again.numpy(), dense, atol=1e-12)
    identity = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(found.left.T @ found.left, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.right @ found.right.T, identity, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 10**6), st.floats(0.1, 8))
def test_the_error_is_the_root_of_the_dropped_energy_and_what_is_left_is_the_nearest(
    outputs: int, inputs: int, rank: int, seed: int, factor: float
) -> None:
    change = Change(factor, *factors(outputs, inputs, rank, seed))
    dense = factor * (change.left @ change.right).numpy()
    u, values, v = np.linalg.svd(dense, full_matrices=False)
    errors = spectrum_of_product(change.left, change.right).errors().tolist()
    for kept in range(1, rank):
        cut, loss = nearest("m", change, RankChoice(kept))
        expected = np.sqrt((values[kept:] ** 2).sum())
        distance = np.linalg.norm(dense - cut.dense().numpy())
        assert distance == pytest.approx(expected, rel=1e-9, abs=1e-10)
        assert loss.lost**0.5 == pytest.approx(expected, rel=1e-9, abs=1e-10)
        assert loss.energy == pytest.approx((dense**2).sum())
        assert loss.error == pytest.approx(expected / np.linalg.norm(dense), rel=1e-9, abs=1e-10)
        assert loss.rank == cut.rank == min(kept, outputs, inputs)
        assert errors[loss.rank] == pytest.approx(loss.error, rel=1e-9, abs=1e-10)
        best = (u[:, :kept] * values[:kept]) @ v[:kept]
        np.testing.assert_allclose(np.linalg.norm(dense - best), distance, atol=1e-10)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 10**6), st.integers(0, 3))
def test_the_full_rank_is_the_identity(
    outputs: int, inputs: int, rank: int, seed: int, more: int
) -> None:
    change = Change(1.7, *(factor.float() for factor in factors(outputs, inputs, rank, seed)))
    same, loss = nearest("m", change, RankChoice(rank + more))
    assert same is change and loss.lost == loss.error == 0 and loss.rank == rank
    # By energy it is decomposed, and comes out the same up to the rounding of float32.
    whole, loss = nearest("m", change, RankChoice(energy=1.0))
    assert loss.error < 1e-12
    torch.testing.assert_close(whole.dense(), change.dense(), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 10**6), st.floats(0.01, 0.999))
def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it(
    outputs: int, inputs: int, rank: int, seed: int, energy: float
) -> None:
    spectrum = spectrum_of_dense(torch.matmul(*factors(outputs, inputs, rank, seed)))
    squares = spectrum.values.numpy() ** 2
    kept = spectrum.rank_for(energy)
    assert squares[:kept].sum() >= energy * squares.sum() * (1 - 1e-12)
    assert kept == 1 or squares[: kept - 1].sum() < energy * squares.sum()


def test_all_of_the_energy_of_a_matrix_that_uses_less_than_its_rank() -> None:
    left, right = factors(6, 5, 2, 0)
    doubled = Change(1.0, torch.cat((left, left), 1), torch.cat((right, right)))
    cut, loss = nearest("m", doubled, RankChoice(energy=1.0))
    assert cut.rank == 2 and loss.error < 1e-12
    torch.testing.assert_close(cut.dense(), 2 * left @ right)


def test_no_change_loses_nothing() -> None:
    change = Change(2.0, torch.zeros(4, 3), torch.randn(3, 5))
    cut, loss = nearest("m", change, RankChoice(energy=0.5))
    assert cut.rank == 1 and loss.error == 0 and not cut.dense().any()
    assert energy_lost([loss]) == 0
    assert not spectrum_of_product(change.left, change.right).errors().any()


def test_the_dense_product_is_never_formed() -> None:
    generator = torch.Generator().manual_seed(0)
    # Formed, it would be of 320 gigabytes.
    left, right = (torch.randn(200_000, 2, generator=generator) for _ in range(2))
    cut, loss = nearest("m", Change(1.0, left, right.T), RankChoice(1))
    assert cut.rank == 1 and 0 < loss.error < 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give one of them"),
        ({"rank": 2, "energy": 0.5}, "give one of them"),
        ({"rank": 0}, "whole number of at least 1"),
        ({"rank": 2.0}, "whole number of at least 1"),
        ({"rank": True}, "whole number of at least 1"),
        ({"energy": 0.0}, "above 0 and at most 1"),
        ({"energy": 1.1}, "above 0 and at most 1"),
        ({"energy": float("nan")}, "above 0 and at most 1"),
    ],
)
def test_impossible_choices(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RankChoice(**settings)  # type: ignore[arg-type]  # that is the point
