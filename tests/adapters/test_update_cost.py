"""What LoRA's update costs a step: the fewest products, its input kept once, nothing below it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deltafit.adapters import activate, adapt, adapter_tensors, layer_state
from deltafit.engine import mixed, packed
from deltafit.methods import LoRA
from tests.adapters.adapted import head_of, randomise
from tests.adapters.test_law import factor, make, oracle
from tests.engine.ragged import ragged, shapes_in_blocks
from tests.tiny_models import tiny_model

INPUTS, OUTPUTS = 24, 40
ROWS, LENGTH = 3, 5


def layer_with(
    kind: str, *methods: LoRA, inputs: int = INPUTS, outputs: int = OUTPUTS
) -> nn.Module:
    """One float64 layer with adapters at random values, named by their order; the first is on."""
    model = make(kind, inputs, outputs)
    for number, method in enumerate(methods):
        adapt(model, method, name=str(number))
        randomise(model, str(number), seed=number)
    activate(model, "0")
    return model


def example() -> Tensor:
    return torch.randn(ROWS, LENGTH, INPUTS, dtype=torch.float64, requires_grad=True)


def kept(call: Callable[[], Tensor], parameters: Sequence[Tensor]) -> dict[int, int]:
    """Bytes that autograd keeps of a call besides parameters, by the address of their storage."""
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    found: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return {address: storage.nbytes() for address, storage in found.items()}


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_input_is_kept_once_and_nothing_for_the_frozen_weight(
    kind: str, freeze_a: bool
) -> None:
    model, x = layer_with(kind, LoRA(("layer",), rank=2, freeze_a=freeze_a)), example()
    found = kept(lambda: model(x), list(model.parameters()))
    of_input = found.pop(x.untyped_storage().data_ptr(), 0)
    assert of_input == (0 if freeze_a else 8 * ROWS * LENGTH * INPUTS)
    assert sum(found.values()) == 8 * ROWS * LENGTH * 2  # A·x


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_many_adapters_keep_the_input_once_together(kind: str) -> None:
    model = layer_with(kind, LoRA(("layer",), rank=2), LoRA(("layer",), rank=4))
    for name in "01":
        for tensor in adapter_tensors(model, name).values():
            tensor.requires_grad_(True)
    x = example()
    with mixed(model, [("0", 1), (None, 1), ("1", 1)]):
        found = kept(lambda: model(x), list(model.parameters()))
    assert found.pop(x.untyped_storage().data_ptr()) == 8 * ROWS * LENGTH * INPUTS
    assert sum(found.values()) == 8 * LENGTH * (2 + 4)


def chain(a: int, b: int, c: int, d: int) -> int:
    """The fewest multiplications of three matrices, ``[a, b]``, ``[b, c]`` and ``[c, d]``."""
    return min(a * b * c + a * c * d, b * c * d + a * b * d)


def fewest(tokens: int, inputs: int, outputs: int, rank: int) -> int:
    """Of base and update, forward and backward, each product in its better order."""
    t, i, o, r = tokens, inputs, outputs, rank
    base = 2 * t * i * o  # y, and what goes back to x
    update, to_x = chain(o, r, i, t), chain(i, r, o, t)
    to_a, to_b = chain(r, o, t, i), chain(o, t, i, r)
    # What two of them share is computed once: A·x and Bᵀ·dy, or B·A and dy·xᵀ.
    first = r * t * (i + o) <= i * o * (r + t)
    shared = r * t * (i + o) if first else i * o * (r + t)
    return base + update + to_x + to_a + to_b - shared


SHAPES = {
    "one token": (1, 24, 40, 2),
    "wide": (7, 16, 64, 8),
    "narrow": (320, 64, 16, 8),
    "half the width": (500, 32, 32, 16),
    "a high rank": (500, 32, 32, 24),
    "a high rank, few tokens": (20, 32, 32, 24),
    "more than the rank of the weight": (90, 16, 48, 64),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_step_takes_as_few_multiplications_as_can_be(
    kind: str, shape: tuple[int, int, int, int]
) -> None:
    tokens, inputs, outputs, rank = shape
    method = LoRA(("layer",), rank=rank)
    model = layer_with(kind, method, inputs=inputs, outputs=outputs)
    tensors = layer_state(model.layer).tensors("0")
    a, b = tensors["lora_A"], tensors["lora_B"]
    x = torch.randn(tokens, inputs, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(tokens, outputs, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        y.backward(upstream)
    assert counter.get_total_flops() == 2 * fewest(*shape)  # a multiplication and a sum
    formula = oracle(model.layer, kind, x, factor(method), a, b)
    torch.testing.assert_close(y, formula, rtol=0, atol=1e-10)
    expected = torch.autograd.grad(formula, [x, a, b], upstream)
    for one, other in zip((x, a, b), expected, strict=True):
        torch.testing.assert_close(one.grad, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", ["padded", "packed", "many"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_nothing_goes_back_below_the_lowest_adapted_layer(architecture: str, run: str) -> None:
    model, batch = tiny_model(architecture), ragged((9, 5, 1))
    for name, layers in (("0", (2,)), ("1", (1,))):
        adapt(model, LoRA(rank=2, layers=layers), name=name, head=head_of(model))
    activate(model, "1")
    context: AbstractContextManager[None] = nullcontext()
    if run == "packed":
        context = packed(model)
    elif run == "many":
        for tensor in (
            *adapter_tensors(model, "0").values(),
            *adapter_tensors(model, "1").values(),
        ):
            tensor.requires_grad_(True)
        context = mixed(model, [("0", 2), ("1", 1)])
    targets = [
        name for name, _ in model.named_modules() if name.endswith(("query", "c_attn", "q_proj"))
    ]
    needs: dict[str, bool] = {}
    for name in targets:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: needs.update({name: args[0].requires_grad})
        )
    with context, shapes_in_blocks(model) as shapes:
        model(**batch)
    assert shapes == [(1, 15) if run == "packed" else (3, 9)]
    # What the lowest adapted layer is given needs no gradient, and so nothing before it does.
    assert [needs[name] for name in targets] == [False, False, True]
