"""Relative positions: a bias of the scores for the longest row, and right for every row."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import adapt
from deltafit.engine import CannotPackError, mixed, packed
from deltafit.engine import variable_length as kernel
from deltafit.engine.attention import packed_attention
from deltafit.engine.layout import Layout, layout_of
from deltafit.errors import DeltafitError
from deltafit.methods import Full, LoRA, Modules
from tests.adapters.adapted import anatomy, head_of, randomise
from tests.engine.ragged import (
    assert_same,
    classifier,
    in_training,
    outputs_and_gradients,
    ragged,
)
from tests.tiny_models import ENCODERS_ALONE, LAYERS

BIAS = "relative_attention_bias"
OF_EACH = {"t5": 1, "mt5": 1, "umt5": LAYERS}  # blocks that have a bias of their own


def biases(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the biases' embeddings, or of adapters on them."""
    return {name: gradient for name, gradient in gradients.items() if BIAS in name}


@pytest.mark.parametrize("probability", [0.0, 1e-9])
@pytest.mark.parametrize("architecture", ENCODERS_ALONE)
@pytest.mark.parametrize("method", [Full(), LoRA((BIAS, "q"), rank=2)], ids=["full", "lora"])
def test_the_bias_learns_packed_as_padded(
    architecture: str, method: Any, probability: float
) -> None:
    model, batch = classifier(architecture).double(), ragged((9, 5, 1, 5, 7))
    adapt(model, method, head=head_of(model))
    if isinstance(method, LoRA):
        randomise(model)
    in_training(model, probability)
    expected = outputs_and_gradients(model, batch)
    with packed(model):
        found = outputs_and_gradients(model, batch)
    assert_same(found, expected)
    learnt = biases(expected[1])
    assert len(learnt) == OF_EACH[architecture] * (2 if isinstance(method, LoRA) else 1)
    for name, gradient in learnt.items():
        largest = float(gradient.abs().max())
        assert largest > 1e-3, name
        # One by one: among all gradients theirs could be the small ones.
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=2e-6 * largest, msg=name)


@pytest.mark.parametrize("architecture", ENCODERS_ALONE)
def test_it_is_computed_for_the_longest_row_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = classifier(architecture), []
    attention = next(m for m in model.modules() if hasattr(m, "compute_bias"))
    compute = type(attention).compute_bias

    def noted(module: nn.Module, query: int, key: int, **options: Any) -> Tensor:
        asked.append((query, key))
        bias: Tensor = compute(module, query, key, **options)
        return bias

    monkeypatch.setattr(type(attention), "compute_bias", noted)
    before = anatomy(model)
    with packed(model), torch.no_grad():
        model(**ragged((4, 2, 3), width=6))
        model(**ragged((4, 2, 3), left=True))  # runs padded
    assert asked == [(4, 4)] * (2 * OF_EACH[architecture])
    assert anatomy(model) == before


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("method", [LoRA((BIAS,), rank=2), Modules((BIAS,))], ids=["lora", "whole"])
def test_adapters_of_the_bias_share_no_pass(method: Any, run_packed: bool) -> None:
    model = classifier("t5")
    for name, own in (("one", LoRA(rank=2)), ("two", LoRA(rank=1)), ("bias", method)):
        adapt(model, own, name=name, head=head_of(model))
    batch = ragged((4, 3))  # the table has as many rows as the batch, or a multiple
    with packed(model) if run_packed else nullcontext():
        with mixed(model, [("one", 1), ("two", 1)]):
            model(**batch)
        with mixed(model, [("bias", 2)]):
            model(**batch)
        with pytest.raises(DeltafitError, match=f"{BIAS} is given relative positions"):
            mixed(model, [("one", 1), ("bias", 1)]).__enter__()


@pytest.mark.parametrize("architecture", ["t5", "umt5"])
def test_it_matters(architecture: str) -> None:
    model, batch = classifier(architecture), ragged((9, 5, 1, 5, 7))
    with packed(model), torch.no_grad():
        expected = model(**batch)
        for module in model.modules():
            if hasattr(module, BIAS):
                getattr(module, BIAS).weight.zero_()
        assert not torch.allclose(model(**batch), expected, atol=1e-2)


def sheet() -> tuple[Layout, list[Tensor]]:
    """A layout of rows of 4, 2 and 2 tokens, padded to 8, and what its blocks attend to."""
    padding = torch.arange(8) < torch.tensor([4, 2, 2]).unsqueeze(1)
    layout = layout_of(padding, causal=False)
    assert layout is not None and layout.tokens == 8 and layout.longest == 4
    return layout, [torch.randn(1, 3, 8, 16) for _ in range(3)]


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 4, 4), (1, 1, 4, 4), (1, 3, 4, 8)])
def test_another_bias_is_refused(shape: tuple[int, ...]) -> None:
    layout, tensors = sheet()
    with pytest.raises(CannotPackError, match=r"Identity .* position_bias of shape .* 4 positions"):
        packed_attention(nn.Identity(), *tensors, layout, position_bias=torch.ones(shape))


def test_zeros_for_the_whole_sheet_are_no_bias() -> None:
    """What a T5 block without a bias of its own makes for itself."""
    layout, tensors = sheet()
    expected, _ = packed_attention(nn.Identity(), *tensors, layout)
    zeros = torch.zeros(1, 3, 8, 8)
    found, _ = packed_attention(nn.Identity(), *tensors, layout, position_bias=zeros)
    assert torch.equal(found, expected)


def test_the_kernel_for_rows_of_any_lengths_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, tensors = sheet()
    monkeypatch.setattr(kernel, "_runs_on", lambda device: True)
    halves = [tensor.bfloat16() for tensor in tensors]
    assert kernel.takes(halves[0], halves[2], layout, dropout=0.0)
    bias = torch.randn(1, 3, 4, 4)
    found, _ = packed_attention(nn.Identity(), *halves, layout, position_bias=bias)
    expected, _ = packed_attention(nn.Identity(), *tensors, layout, position_bias=bias)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
