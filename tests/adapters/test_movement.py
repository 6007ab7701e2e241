"""How far matrices moved: against numpy's singular values of the change itself."""

import numpy as np
import pytest
import torch
from torch import nn

from deltafit.adapters import adapt, layer_state, merged, movement
from deltafit.adapters.movement import effective_rank, layer_changes, replaced_changes
from deltafit.methods import DoRA, Full, LoRA, Method
from tests.adapters.adapted import head_of, randomise
from tests.tiny_models import tiny_model


def rank_by_entropy(delta: torch.Tensor) -> float:
    values = np.linalg.svd(delta.double().flatten(1).numpy(), compute_uv=False)
    shares = values[values > 1e-9 * values[0]] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_values_alike_count_each_and_small_ones_hardly(count: int) -> None:
    values = torch.zeros(9, dtype=torch.float64)
    values[:count] = 0.7
    assert effective_rank(values) == pytest.approx(count)
    values[count:] = 1e-12
    assert effective_rank(values) == pytest.approx(count, abs=1e-8)


def test_no_change_has_no_direction() -> None:
    assert effective_rank(torch.zeros(4, dtype=torch.float64)) == 0
    model = tiny_model("bert")
    adapt(model, LoRA(rank=2), head=head_of(model))
    for change in layer_changes(model, "default"):
        assert change.delta_norm == change.share == change.effective_rank == 0


@pytest.mark.parametrize("method", [LoRA(rank=3, alpha=5), DoRA(rank=2)], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_layers_moved_as_far_as_merging_moves_them(method: Method, architecture: str) -> None:
    model = tiny_model(architecture)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapt(model, method, head=head_of(model))
    randomise(model)
    found = layer_changes(model, "default")
    assert found
    with merged(model):
        after = {n: p.detach().clone() for n, p in model.named_parameters()}
    for change in found:
        weight = before[f"{change.name}.weight"]
        delta = after[f"{change.name}.weight"] - weight
        assert change.delta_norm == pytest.approx(float(delta.norm()), rel=1e-4)
        assert change.weight_norm == pytest.approx(float(weight.norm()), rel=1e-5)
        if isinstance(method, LoRA):
            assert change.effective_rank == pytest.approx(rank_by_entropy(delta), rel=1e-3)
        assert 1 < (change.effective_rank or 0) <= min(weight.shape)


def test_a_convolution_in_groups_counts_its_whole_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 3))
    adapt(model, LoRA("0", rank=1), head=["2.weight", "2.bias"])
    randomise(model)
    (change,) = layer_changes(model, "default")
    delta = layer_state(model[0]).deltas("default")["weight"].detach()
    assert change.effective_rank == pytest.approx(rank_by_entropy(delta), rel=1e-4)
    assert change.delta_norm == pytest.approx(float(delta.norm()))


def test_matrices_stored_whole_moved_from_the_base_and_the_head_from_nothing() -> None:
    model = tiny_model("bert")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    head = head_of(model)
    adapt(model, Full(), head=head)
    randomise(model)
    found = {change.name: change for change in replaced_changes(model, "default", head)}
    assert layer_changes(model, "default") == ()
    matrices = {n for n, p in before.items() if p.ndim == 2 and n not in head}
    assert set(found) == {name.removesuffix(".weight") for name in matrices}
    for name in matrices:
        delta = model.get_parameter(name).detach() - before[name]
        change = found[name.removesuffix(".weight")]
        assert change.delta_norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert change.effective_rank == pytest.approx(rank_by_entropy(delta), rel=1e-4)


def test_a_dense_change_too_large_has_a_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "LARGEST_SIDE", 31)
    model = tiny_model("bert")
    adapt(model, Full(), head=head_of(model))
    randomise(model)
    for change in replaced_changes(model, "default", head_of(model)):
        assert (change.effective_rank is None) == (min(change.shape) > 31)
        assert change.delta_norm > 0
