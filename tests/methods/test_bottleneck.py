"""Bottleneck adapters: their settings, their tensors and what they compute of them."""

from typing import Any

import pytest
import torch

from deltafit.adapters import generator_for, view_of
from deltafit.errors import UsageError
from deltafit.methods import Bottleneck, parse_method


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"size": 0}, "size must be a whole number of at least 1"),
        ({"size": 2.0}, "size must be a whole number"),
        ({"size": True}, "size must be a whole number"),
        ({"variant": "both"}, "variant must be one of houlsby, pfeiffer"),
        ({"activation": "swish"}, "activation must be one of gelu, relu, silu, tanh"),
        ({"layers": ("0",)}, "layers takes a tuple of block indices"),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Bottleneck(**settings)


def test_it_is_written_as_text() -> None:
    text = "bottleneck:layers=0+-1,size=16,variant=pfeiffer,activation=relu"
    method = Bottleneck(layers=(0, -1), size=16, variant="pfeiffer", activation="relu")
    assert parse_method(text) == method and str(method) == text


@pytest.mark.parametrize("size", [1, 5])
def test_how_wide_it_is(size: int) -> None:
    view = view_of(torch.nn.Linear(4, 6))
    method = Bottleneck(size=7).with_size(size)
    tensors = method.initialise(view, lambda name: generator_for(0, name))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {
        "adapter_down": (size, 6),
        "adapter_down_bias": (size,),
        "adapter_up": (6, size),
        "adapter_up_bias": (6,),
    }
    assert {name for name, tensor in tensors.items() if tensor.any()} == {"adapter_down"}
    assert tensors["adapter_down"].abs().max() <= 6**-0.5


@pytest.mark.parametrize(
    ("activation", "value"),  # of the function at 1, from tables
    [("gelu", 0.8413447), ("relu", 1.0), ("silu", 0.7310586), ("tanh", 0.7615942)],
)
def test_the_formula_with_one_unit(activation: str, value: float) -> None:
    method = Bottleneck(size=1, activation=activation)  # type: ignore[arg-type]
    tensors = {
        "adapter_down": torch.tensor([[2.0, 0.0]]),
        "adapter_down_bias": torch.tensor([-5.0]),
        "adapter_up": torch.tensor([[10.0], [-1.0]]),
        "adapter_up_bias": torch.tensor([0.5, 0.0]),
    }
    view = view_of(torch.nn.Linear(4, 2))
    given = torch.tensor([3.0, 7.0])  # 2·3 - 5 = 1
    found = method.post(view, torch.zeros(4), given, tensors)
    torch.testing.assert_close(found, torch.tensor([3.5 + 10 * value, 7.0 - value]))


def test_a_half_precision_output_stays_one() -> None:
    layer = torch.nn.Linear(4, 2).bfloat16()
    method = Bottleneck(size=3)
    tensors = method.initialise(view_of(layer), lambda name: generator_for(0, name))
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    y = torch.randn(5, 2).bfloat16()
    found = method.post(view_of(layer), torch.zeros(5, 4), y, tensors)
    assert found.dtype == torch.bfloat16 and torch.equal(found, y)
