"""The node of autograd that adds s·B·A·x: its gradients, theirs again, and under vmap."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from deltafit.adapters import adapt
from deltafit.adapters.update import LowRankUpdate
from deltafit.methods import LoRA
from tests.adapters.adapted import randomise

TOKENS, INPUTS, OUTPUTS, RANK, FACTOR = 5, 4, 6, 2, 1.7


def tensors(*frozen: int) -> list[Tensor]:
    """y, x, right and left in float64; those whose numbers are given get no gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = (TOKENS, OUTPUTS), (TOKENS, INPUTS), (RANK, INPUTS), (OUTPUTS, RANK)
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(
            number not in frozen
        )
        for number, shape in enumerate(shapes)
    ]


def update(y: Tensor, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
    updated: Tensor = LowRankUpdate.apply(y, x, right, left, FACTOR)[0]
    return updated


def written_out(y: Tensor, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
    return y + FACTOR * x @ (left @ right).T


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (3,), (0, 1), (0, 1, 2)])
def test_gradients_and_theirs_are_those_of_finite_differences(frozen: tuple[int, ...]) -> None:
    torch.testing.assert_close(update(*tensors(*frozen)), written_out(*tensors(*frozen)))
    assert gradcheck(update, tensors(*frozen))
    assert gradgradcheck(update, tensors(*frozen))


@pytest.mark.parametrize("function", [update, lambda *given: update(*given).sin()])
def test_many_at_once_are_each_alone(function: Callable[..., Tensor]) -> None:
    y, x, right, left = tensors()
    rights = torch.stack([right, right.flip(0), 2 * right]).detach()

    def gradient(right: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda own: function(y, x, own, left).square().sum())(right)
        return found

    together = torch.func.vmap(gradient)(rights)
    torch.testing.assert_close(together, torch.stack([gradient(own) for own in rights]))


def test_a_layer_gives_the_same_bits_whether_it_learns_or_not() -> None:
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS))
    adapt(model, LoRA(("0",), rank=RANK))
    randomise(model)
    x = torch.randn(TOKENS, INPUTS)
    learning = model(x)
    assert learning.requires_grad
    with torch.no_grad():
        assert torch.equal(model(x), learning)
        traced = torch.jit.trace(model, x)
    assert "LowRankUpdate" not in str(traced.inlined_graph)
