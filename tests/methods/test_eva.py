"""EVA's directions and ranks against scikit-learn's PCA and a count by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import DoRA, LoRA
from deltafit.methods.eva import explained_shares, principal_directions, redistributed


def inputs(features: int = 7, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(50, features)) * np.arange(1, features + 1)
    return mixed @ generator.normal(size=(features, features)) + 3  # correlated, not centred


def statistic_of(x: np.ndarray) -> dict[str, Tensor]:
    return {
        "mean": torch.from_numpy(x.mean(0)),
        "second_moment": torch.from_numpy(x.T @ x / len(x)),
    }


def test_directions_and_shares_are_those_of_a_principal_component_analysis() -> None:
    x = inputs()
    analysis = PCA().fit(x)
    rows = principal_directions(statistic_of(x), 4).numpy()
    signs = np.sign((rows * analysis.components_[:4]).sum(1, keepdims=True))
    np.testing.assert_allclose(rows, signs * analysis.components_[:4], atol=1e-9)
    assert all(row[np.abs(row).argmax()] > 0 for row in rows)
    shares = explained_shares(statistic_of(x)).numpy()
    np.testing.assert_allclose(shares, analysis.explained_variance_ratio_, atol=1e-12)


def test_inputs_that_do_not_vary_explain_nothing() -> None:
    assert not explained_shares(statistic_of(np.ones((4, 3)))).any()


def test_more_directions_than_inputs_are_refused() -> None:
    with pytest.raises(DeltafitError, match=r"rank of at most 7 there, .* it is 8"):
        principal_directions(statistic_of(inputs()), 8)


SHARES = {
    "a": torch.tensor([0.50, 0.30, 0.15, 0.05]),
    "b": torch.tensor([0.97, 0.01, 0.01, 0.01]),
    "c": torch.tensor([0.30, 0.30, 0.25, 0.15]),
}


@pytest.mark.parametrize(
    ("rank", "rho", "expected"),
    [
        # One each; then a's 0.30, c's 0.30, c's 0.25.
        (2, 2.0, {"a": 2, "b": 1, "c": 3}),
        # None may have more than round(1.5 · 2) = 3, and here nobody wants to.
        (2, 1.5, {"a": 2, "b": 1, "c": 3}),
        # Two at most: all that can be given is what each had.
        (2, 1.0, {"a": 2, "b": 2, "c": 2}),
        # One each, and none left to move.
        (1, 4.0, {"a": 1, "b": 1, "c": 1}),
        # Nine: after one each 0.30 0.30 0.25 0.15 0.15 0.05.
        (3, 2.0, {"a": 4, "b": 1, "c": 4}),
        # The cap of three keeps a's 0.05 and c's 0.15 away: b has both of its 0.01.
        (3, 1.1, {"a": 3, "b": 3, "c": 3}),
    ],
)
def test_ranks_go_where_they_explain_most(rank: int, rho: float, expected: dict[str, int]) -> None:
    assert redistributed(SHARES, dict.fromkeys(SHARES, rank), rho) == expected


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha", "alpha/sqrt(r)"])
def test_every_layer_keeps_its_scaling_and_the_sum_of_ranks_stays(scaling: Any) -> None:
    method = LoRA(
        rank=3, alpha=5, scaling=scaling, initialisation="eva", rank_pattern=(("b.x", 2),)
    )
    # One name is the end of another: each has its own rank all the same.
    statistics = {name: statistic_of(inputs(seed=n)) for n, name in enumerate(("x", "b.x", "c"))}
    statistics["c"] = statistic_of(np.outer(np.arange(9.0), np.ones(7)))  # one direction says all
    after = method.informed(statistics)
    ranks = [after.for_module(name).rank for name in statistics]
    assert sum(ranks) == 3 + 2 + 3 and ranks[2] == 1 and max(ranks) <= 6
    for name in statistics:
        assert math.isclose(after.for_module(name).factor, method.for_module(name).factor)
    saved = after.kept({})
    assert type(saved) is LoRA and saved.initialisation == "kaiming" and saved.statistic() is None
    assert saved.rank_pattern == after.rank_pattern and saved.alpha_pattern == after.alpha_pattern


def test_with_rho_1_and_without_eva_nothing_moves() -> None:
    statistics = {"a": statistic_of(inputs()), "b": statistic_of(inputs(seed=1))}
    for method in (LoRA(rank=3, initialisation="eva", rho=1), LoRA(rank=3), DoRA(rank=3)):
        assert method.informed(statistics) is method


@pytest.mark.parametrize("rho", [0.9, float("inf"), True])
def test_an_impossible_rho_is_refused(rho: Any) -> None:
    with pytest.raises(UsageError, match="rho must be a finite number of at least 1"):
        LoRA(rho=rho)
