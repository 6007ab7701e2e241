"""Bulk dropout: the right statistics, exact scale and gradient, and a seed gives the same again."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

from deltafit.adapters import adapt, disabled
from deltafit.engine.dropout import BulkDropout, bulk_dropout, draw_kept, drop_in_bulk
from deltafit.methods import LoRA, VeRA
from tests.tiny_models import tiny_model

COUNT = 1 << 20
PROBABILITIES = (0.01, 0.1, 0.25, 0.5, 0.9)
LEVELS = 65536  # p is a multiple of one over this


@pytest.mark.parametrize("p", PROBABILITIES)
def test_as_many_are_kept_as_should_be(p: float) -> None:
    kept, _ = draw_kept(COUNT, p)
    assert set(kept.unique().tolist()) == {0, 1}
    # Two-sided exact test; seeded by the fixture, so it fails always or never.
    assert stats.binomtest(int(kept.sum()), COUNT, 1 - round(p * LEVELS) / LEVELS).pvalue > 0.001
    # Counts in blocks of 1,024 spread as binomial ones do: neither too evenly nor in clumps.
    blocks = kept.view(-1, 1024).sum(1).double()
    spread = float(blocks.var() / (1024 * p * (1 - p))) * (len(blocks) - 1)
    assert 0.001 < stats.chi2.cdf(spread, len(blocks) - 1) < 0.999


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_positions_are_independent(p: float) -> None:
    first, _ = draw_kept(COUNT, p)
    second, _ = draw_kept(COUNT, p)
    limit = 4 / math.sqrt(COUNT)  # four standard errors of a correlation
    a = first.double() - first.double().mean()
    b = second.double() - second.double().mean()
    size = float(a.square().sum())
    # Four numbers come from one word of 64 bits: neighbours, and words after it.
    for lag in (1, 2, 3, 4, 5, 8, 64, 384):
        assert abs(float((a[lag:] * a[:-lag]).sum())) / size < limit, lag
    assert abs(float((a * b).sum())) / size < limit
    for lane in range(4):
        share = float(first[lane::4].double().mean())
        assert abs(share - (1 - p)) < 4 * math.sqrt(p * (1 - p) / (COUNT / 4)), lane


def test_numbers_are_uniform() -> None:
    seeds = []
    for p in np.linspace(0.05, 0.95, 19):
        torch.manual_seed(7)
        seeds.append(float(draw_kept(COUNT, p)[0].double().mean()))
    np.testing.assert_allclose(seeds, 1 - np.linspace(0.05, 0.95, 19), atol=0.002)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_is_scaled_and_the_gradient_is_the_mask(p: float, dtype: torch.dtype) -> None:
    x = torch.full((41, 25), 3.0, dtype=dtype, requires_grad=True)  # no multiple of four
    y = drop_in_bulk(x, p)
    factor = LEVELS / (LEVELS - round(p * LEVELS))
    assert factor == pytest.approx(1 / (1 - p), rel=2e-4)
    kept = y != 0
    assert y.dtype == dtype and 0 < int(kept.sum()) < kept.numel()
    expected = torch.where(kept, torch.tensor(3.0, dtype=dtype) * factor, 0)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    upstream = torch.randn(x.shape).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, (upstream * kept) * factor, rtol=0, atol=0)


@pytest.mark.parametrize("dropped", [1, 6554, 65535])
def test_of_all_numbers_the_right_ones_are_dropped(
    dropped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EveryNumberOnce:
        def __init__(self, seed: int) -> None:
            self.words = np.arange(LEVELS, dtype=np.uint16).view(np.uint64)

        def random_raw(self, count: int) -> np.ndarray:
            return self.words[:count]

    monkeypatch.setattr(np.random, "SFC64", EveryNumberOnce)
    kept, factor = draw_kept(LEVELS, dropped / LEVELS)
    assert int(kept.sum()) == LEVELS - dropped
    assert factor == LEVELS / (LEVELS - dropped)


def test_its_expectation_is_the_input() -> None:
    x = torch.tensor([1.0, -2.0, 0.5]).double()
    mean = drop_in_bulk(x.expand(200_000, 3), 0.3).mean(0)
    error = x.abs() * math.sqrt(0.3 / 0.7 / 200_000)
    assert ((mean - x).abs() < 4 * error).all()


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1e-6, 1.0), (1.0, 0.0), (1 - 1e-6, 0.0)])
def test_nothing_and_everything(p: float, expected: float) -> None:
    x = torch.ones(5, 3, requires_grad=True)
    y = drop_in_bulk(x, p)
    y.sum().backward()
    assert torch.equal(y, torch.full((5, 3), expected))
    assert x.grad is not None and torch.equal(x.grad, torch.full((5, 3), expected))


def test_empty_input() -> None:
    assert drop_in_bulk(torch.ones(0, 4), 0.5).shape == (0, 4)


def test_a_seed_gives_the_same_and_each_call_another() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = drop_in_bulk(x, 0.5), drop_in_bulk(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(drop_in_bulk(x, 0.5), first)
    assert torch.equal(drop_in_bulk(x, 0.5), second)
    assert not torch.equal(first, second)


def test_gradient_checkpointing_drops_the_same_again() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.2))
    x = torch.randn(6, 8)
    gradients = []
    with bulk_dropout(network):
        for checkpointed in (False, True):
            torch.manual_seed(1)
            y = checkpoint(network, x, use_reentrant=False) if checkpointed else network(x)
            gradients.append(torch.autograd.grad(y.square().sum(), network[0].weight)[0])
    assert gradients[0].any() and torch.equal(*gradients)


def test_modules_are_swapped_and_swapped_back() -> None:
    class Special(nn.Dropout):
        pass

    model = nn.ModuleList([nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1)), Special(0.5)])
    x = torch.ones(1000)
    with bulk_dropout(model):
        assert [type(m) for m in model.modules() if isinstance(m, nn.Dropout)] == [
            *(BulkDropout, BulkDropout, Special),
        ]
        torch.manual_seed(0)
        bulk = model[0](x)
        torch.manual_seed(0)
        assert torch.equal(bulk, drop_in_bulk(x, 0.5))
        model.eval()
        assert torch.equal(model[0](x), x)
    with pytest.raises(RuntimeError), bulk_dropout(model):
        raise RuntimeError
    assert not [m for m in model.modules() if isinstance(m, BulkDropout)]


@pytest.mark.parametrize(
    "method",
    [LoRA(target_modules=("0",), dropout=0.25), VeRA(target_modules=("0",), dropout=0.25)],
)
def test_what_adapters_drop_of_their_inputs(method: LoRA | VeRA) -> None:
    """The update of an input is that of the input as ``drop_in_bulk`` leaves it."""
    network = nn.Sequential(nn.Linear(64, 8, bias=False))
    adapt(network, method)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    x = torch.randn(500, 64)
    with disabled(network):
        base = network(x)
        torch.manual_seed(5)
        of_dropped = network(drop_in_bulk(x, 0.25))
    network.eval()
    torch.manual_seed(5)
    expected = base + network(drop_in_bulk(x, 0.25)) - of_dropped
    network.train()
    for _ in range(2):
        torch.manual_seed(5)
        with bulk_dropout(network):
            found = network(x)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.manual_seed(5)
    with disabled(network):
        assert torch.equal(network(x), base)


def test_a_model_trains_under_it_with_the_same_expectation() -> None:
    model = tiny_model("bert", task="base").train()
    embeddings = model.embeddings
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = embeddings.eval()(ids)
        embeddings.train()
        with bulk_dropout(model):
            mean = torch.stack([embeddings(ids) for _ in range(1500)]).mean(0)
    error = expected.abs() * math.sqrt(0.1 / 0.9 / 1500)
    assert ((mean - expected).abs() < 5 * error + 1e-6).all()
