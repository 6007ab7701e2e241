"""Reduced products: float64 algebra within bf16's rounding, in training, of what is frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from deltafit.adapters import adapt, layer_state
from deltafit.adapters.structure import main_stack
from deltafit.engine import (
    bulk_dropout,
    check_products,
    frozen_products,
    packed,
    reduced_products,
)
from deltafit.engine.frozen import reduced_product, rounded_up
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import anatomy, head_of, randomise
from tests.engine.mixes import LENGTHS, SEGMENTS, alone, assert_each_has_its_own, with_adapters
from tests.engine.ragged import in_training, outputs_and_gradients, ragged
from tests.tiny_models import LAYERS, tiny_model

ROUNDOFF = 2.0**-8  # of bf16
BATCH = ragged((9, 5, 1, 5, 7))


def assert_within(found: Tensor, left: Tensor, right: Tensor, added: Tensor | float = 0.0) -> None:
    """``left @ right + added`` but for three roundings: of the two factors and of the product."""
    exact = left.double() @ right.double()
    bound = 2.1 * (left.abs().double() @ right.abs().double()) + 1.1 * exact.abs()
    assert found.dtype == torch.float32
    assert ((found.double() - exact - added).abs() <= ROUNDOFF * bound).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (128,), (2, 3), (300,), (), (0,), (2, 0)])
def test_products_and_gradients_are_those_of_algebra(shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(*shape, 48, requires_grad=True)
    weight, added = torch.randn(24, 48), torch.randn(24, requires_grad=True)
    y = reduced_product(x, weight.bfloat16(), added if bias else None)
    dy = torch.randn(y.shape)
    assert y.shape == (*shape, 24)
    assert_within(y.detach(), x.detach(), weight.T, added.detach().double() if bias else 0.0)
    dx, *rest = torch.autograd.grad(y, (x, added) if bias else x, dy)
    assert_within(dx, dy, weight)
    if bias:
        torch.testing.assert_close(rest[0], dy.reshape(-1, 24).sum(0))


class Products(TorchDispatchMode):
    """Keeps the rows and dtypes of the products that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, torch.dtype]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's own names
        if func is torch.ops.aten.mm.default:
            self.seen.add((args[0].shape[0], args[0].dtype))
        return func(*args, **kwargs or {})


def test_the_kernel_sees_few_shapes_and_gives_the_same() -> None:
    weight = torch.randn(24, 48).bfloat16()
    x = torch.randn(128, 48, requires_grad=True)
    whole = reduced_product(x, weight)
    with Products() as products:
        for count in (1, 2, 63, 127):
            part = reduced_product(x[:count], weight)
            assert torch.equal(part, whole[:count])
            # Without rows of zeros: another kernel may sum in another order.
            plain = functional.linear(x[:count].bfloat16(), weight).float()
            torch.testing.assert_close(part, plain, rtol=2 * ROUNDOFF, atol=1e-3)
            part.sum().backward()
        reduced_product(torch.randn(129, 48), weight)
    rows = {rows for rows, dtype in products.seen if dtype == torch.bfloat16}
    of_ours = {16, 64, 128, 144}
    assert of_ours <= rows <= of_ours | {1, 2, 63, 127}  # the others are of functional.linear


def test_few_rows_are_zeros_and_few_numbers_of_rows_there_are() -> None:
    rows = [rounded_up(count) for count in range(1, 2049)]
    assert all(count <= many for count, many in enumerate(rows, 1))
    assert all(many <= 1.125 * count for count, many in enumerate(rows, 1) if count >= 128)
    assert len(set(rows)) == 40 and all(many % 16 == 0 for many in rows)
    assert all(rounded_up(many) == many for many in rows)


def adapted(architecture: str, method: Method | None = None) -> nn.Module:
    """An adapted model in training mode without dropout, its adapter at random values."""
    model = tiny_model(architecture)
    adapt(model, method or LoRA(rank=2), head=head_of(model))
    randomise(model)
    return in_training(model)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_only_frozen_layers_in_blocks_are_touched(architecture: str) -> None:
    def touched(method: Method) -> set[str]:
        model = adapted(architecture, method)
        names = {module: name for name, module in model.named_modules()}
        before = {name: type(module) for module, name in names.items()}
        with reduced_products(model):
            changed = {n for m, n in names.items() if type(m) is not before[n]}
        assert changed == {names[m] for m in frozen_products(model)}
        return changed

    model = tiny_model(architecture)
    blocks = main_stack(model).blocks
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(blocks)
    }
    assert touched(LoRA(rank=2)) == touched(Head()) == linear
    below = {name for name in linear if not name.startswith(blocks[-1] + ".")}
    assert touched(LastBlocks(1)) == below and below
    assert touched(Full()) == set()
    outside = [model.get_submodule(block) for block in blocks[:-1]]
    assert len(frozen_products(model.requires_grad_(False), outside)) == len(linear) // LAYERS


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "mpnet"])
def test_less_is_lost_than_under_autocast(architecture: str) -> None:
    """Which rounds the adapter, attention and the residual stream too."""
    model = adapted(architecture)
    expected, gradients = outputs_and_gradients(model, BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, rounded_gradients = outputs_and_gradients(model, BATCH)
    with reduced_products(model):
        found, reduced = outputs_and_gradients(model, BATCH)
    assert 0 < distance(found, expected) < 2 * distance(rounded.float(), expected)
    assert reduced.keys() == gradients.keys()
    assert {gradient.dtype for gradient in reduced.values()} == {torch.float32}
    ours, theirs, right = (
        torch.cat([each[name].flatten() for name in gradients])
        for each in (reduced, rounded_gradients, gradients)
    )
    assert 0 < distance(ours, right) < distance(theirs, right)


def distance(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_it_goes_with_packing_dropout_and_checkpointing(architecture: str) -> None:
    model = adapted(architecture)
    with packed(model):
        expected, _ = outputs_and_gradients(model, BATCH)
        with reduced_products(model):
            close, _ = outputs_and_gradients(model, BATCH)
    assert 0 < distance(close, expected) < 0.05

    results = []
    in_training(model, 0.1)
    for recomputed in (False, True):
        if recomputed:
            enable_gradient_checkpointing(model)
        with bulk_dropout(model), packed(model), reduced_products(model):
            torch.manual_seed(1)
            results.append(outputs_and_gradients(model, BATCH))
    (logits, gradients), (again, recomputed_gradients) = results
    assert torch.equal(logits, again)
    assert gradients.keys() == recomputed_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, recomputed_gradients[name]), name


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_evaluation_inside_is_float32_to_the_bit(architecture: str) -> None:
    model = adapted(architecture).eval()
    expected = outputs_and_gradients(model, BATCH)
    with reduced_products(model):
        found = outputs_and_gradients(model, BATCH)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], g) for name, g in expected[1].items())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_model_is_left_as_it_was(architecture: str) -> None:
    model = adapted(architecture)
    before = anatomy(model)
    with reduced_products(model):
        assert list(model.state_dict()) == before["keys"]
        outputs_and_gradients(model, BATCH)
    assert anatomy(model) == before
    with pytest.raises(KeyboardInterrupt), reduced_products(model):
        raise KeyboardInterrupt
    assert anatomy(model) == before


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Renamed(nn.Linear):
    pass


def blocks_of(kind: type[nn.Linear]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(kind(16, 16), nn.Tanh()) for _ in range(2)))
    return model.requires_grad_(False).train()


def test_layers_with_a_forward_of_their_own_are_left_alone() -> None:
    x = torch.randn(5, 16)
    assert frozen_products(blocks_of(Doubled)) == []
    own = blocks_of(nn.Linear)
    own[0][0].forward = lambda x: x  # as accelerate puts one there
    assert frozen_products(own) == [own[1][0]]
    inherited = blocks_of(Renamed)
    expected = inherited(x)
    with reduced_products(inherited):
        assert isinstance(inherited[0][0], Renamed)
        assert 0 < distance(inherited(x), expected) < 0.02
    assert type(inherited[0][0]) is Renamed
    assert frozen_products(blocks_of(nn.Linear).double()) == []


def test_a_layer_called_with_its_deltas_takes_them() -> None:
    """As methods without a fast forward are computed: the copy is not of that weight."""
    model = blocks_of(nn.Linear)
    adapt(model, LoRA(rank=2, target_modules=("0.0",)))
    randomise(model)
    layer, x = model[0][0], torch.randn(5, 16)
    expected = functional.linear(x, layer.weight + layer_state(layer).deltas("default")["weight"])
    expected = expected + layer.bias
    with reduced_products(model):
        state = layer_state(layer)
        found = state.view.forward_with(state.deltas("default"), x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        # Whereas LoRA's own forward takes the base product as it is.
        assert 1e-5 < distance(layer(x), expected) < 0.02


@contextmanager
def multiplying(monkeypatch: pytest.MonkeyPatch, change: Any) -> Iterator[None]:
    from deltafit.engine import frozen

    right = frozen._multiply
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_multiply", lambda x, matrix: change(right(x, matrix)))
        yield


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "albert", "deberta-v2"])
def test_the_check_is_silent_where_products_are_right(architecture: str) -> None:
    model = tiny_model(architecture).requires_grad_(False)
    assert check_products(model, BATCH) is None


@pytest.mark.parametrize("change", [lambda y: 1.2 * y, lambda y: y * torch.nan], ids=["1.2", "nan"])
def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    model = adapted("bert", LoRA(rank=2, dropout=0.5))
    randomise(model, std=0.05)
    before, state = anatomy(model), torch.get_rng_state()
    with packed(model):
        assert check_products(model, BATCH) is None
    with multiplying(monkeypatch, change):
        found = check_products(model, BATCH)
    assert found and found.startswith("With its frozen products in bf16, BertForSequence")
    assert anatomy(model) == before and torch.equal(torch.get_rng_state(), state)
    assert model.training and model.bert.encoder.layer[0].attention.self.query.training


def test_a_kernel_that_is_wrong_backward_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from deltafit.engine import frozen

    model, right = adapted("bert", LoRA(rank=2)), frozen._multiply
    randomise(model, std=0.05)

    def halved(x: Tensor, matrix: Tensor) -> Tensor:
        product = right(x, matrix)
        return 0.5 * product if matrix.is_contiguous() else product  # forward it is a transpose

    before = anatomy(model)
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_multiply", halved)
        found = check_products(model, BATCH)
    assert found and "gives other states or gradients" in found
    assert anatomy(model) == before and all(p.grad is None for p in model.parameters())
    assert check_products(model, BATCH) is None


def test_adapters_that_are_mixed_share_the_reduced_products() -> None:
    model, batch = with_adapters(tiny_model("bert")), ragged(LENGTHS)
    for product in frozen_products(model):
        product.training = True  # or they would not be reduced
    plain, _ = alone(model, batch, SEGMENTS)
    with reduced_products(model):
        reduced, _ = alone(model, batch, SEGMENTS)
        assert not any(map(torch.equal, plain, reduced))
        assert_each_has_its_own(model, batch, tolerance=2e-2)
