"""The one law: the fast forward is the layer computed with W + Δ, values and gradients alike.

The oracle writes Δ = s·B·A and each layer type's formula out anew; nothing of ours computes it.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.pytorch_utils import Conv1D

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    layer_state,
    merge,
    remove_adapter,
    unmerge,
)
from deltafit.adapters.layers import view_of
from deltafit.errors import DeltafitError
from deltafit.methods import METHODS, DeltaMethod, LoRA
from deltafit.methods.delta import DeltaMethod as Base
from tests.adapters.adapted import anatomy, randomise

KINDS = ("linear", "conv1d", "embedding", "padded embedding", "Conv1d", "Conv2d")
size = st.integers(1, 7)


class OneLayer(nn.Module):
    """One layer under a name that can be targeted."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.layer(*args, **kwargs)


def make(kind: str, inputs: int, outputs: int, bias: bool = True) -> OneLayer:
    layer: nn.Module
    if kind == "linear":
        layer = nn.Linear(inputs, outputs, bias=bias)
    elif kind == "conv1d":
        layer = Conv1D(outputs, inputs)
        nn.init.normal_(layer.bias)
    elif kind == "Conv1d":
        layer = nn.Conv1d(inputs, outputs, 3, stride=2, padding=1, bias=bias)
    elif kind == "Conv2d":
        layer = nn.Conv2d(inputs, outputs, (2, 3), padding=(1, 0), dilation=(2, 1), bias=bias)
    else:
        layer = nn.Embedding(inputs, outputs, padding_idx=0 if kind.startswith("padded") else None)
    return OneLayer(layer).double().eval()


def example(kind: str, inputs: int, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if "embedding" in kind:
        return torch.randint(0, inputs, shape, generator=generator)
    if kind.startswith("Conv"):
        shape = (shape[0], inputs, 6, 5)[: 3 if kind == "Conv1d" else 4]
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randn(*shape, inputs, generator=generator, dtype=torch.float64)


def oracle(layer: nn.Module, kind: str, x: Tensor, s: float, A: Tensor, B: Tensor) -> Tensor:
    """The formula of each layer type with W + s·B·A, from the paper and torch's documentation."""
    delta = s * torch.einsum("or,ri->oi", B, A)
    if kind == "linear":
        return functional.linear(x, layer.weight + delta, layer.bias)
    if kind == "conv1d":
        return x @ (layer.weight + delta.T) + layer.bias
    if kind.startswith("Conv"):
        kernels = layer.weight + delta.view(layer.weight.shape)
        convolve = getattr(functional, kind.lower())
        return convolve(x, kernels, layer.bias, layer.stride, layer.padding, layer.dilation)
    return functional.embedding(x, layer.weight + delta.T, padding_idx=layer.padding_idx)


def factor(method: LoRA) -> float:
    return {
        "alpha/r": method.alpha / method.rank,
        "alpha": method.alpha,
        "alpha/sqrt(r)": method.alpha / math.sqrt(method.rank),
    }[method.scaling]


@given(
    kind=st.sampled_from(KINDS),
    inputs=size,
    outputs=size,
    shape=st.lists(size, min_size=1, max_size=3).map(tuple),
    rank=st.integers(1, 9),
    alpha=st.floats(0.1, 64),
    scaling=st.sampled_from(["alpha/r", "alpha", "alpha/sqrt(r)"]),
    dropout=st.sampled_from([0.0, 0.5]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_fast_forward_and_gradients_are_those_of_the_changed_layer(
    kind: str, inputs: int, outputs: int, shape: tuple[int, ...], rank: int, alpha: float,
    scaling: str, dropout: float, bias: bool, seed: int,
) -> None:  # fmt: skip
    method = LoRA(("layer",), rank=rank, alpha=alpha, scaling=scaling, dropout=dropout)
    model = make(kind, inputs, outputs, bias)
    adapt(model, method)
    model.train(dropout == 0)  # the law holds in evaluation, or without dropout
    randomise(model, seed=seed)
    A, B = (adapter_tensors(model, "default")[f"layer.{n}"] for n in ("lora_A", "lora_B"))
    if kind == "padded embedding":
        A.data[:, 0] = 0  # the padding row starts at zero and gets no gradient: it stays there
    x = example(kind, inputs, shape, seed)
    if x.is_floating_point():
        x.requires_grad_()
    wanted = [A, B, *([x] if x.is_floating_point() else [])]
    expected = oracle(model.layer, kind, x, factor(method), A, B)
    reference = layer_state(model.layer).view.forward_with(
        layer_state(model.layer).deltas("default"), x
    )
    fast = model(x)
    torch.testing.assert_close(fast, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, wanted, direction)
    for y in (fast, reference):
        gradients = torch.autograd.grad(y, wanted, direction)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)
    merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if issubclass(m, DeltaMethod)])
def test_every_delta_method_has_the_reference_forwards_gradients(name: str, kind: str) -> None:
    model, x = make(kind, 5, 3), example(kind, 5, (2, 4), 0)
    adapt(model, METHODS[name](target_modules=("layer",)))  # type: ignore[call-arg]  # a DeltaMethod
    randomise(model)
    tensors = adapter_tensors(model, "default")
    if kind == "padded embedding":
        x = x.clamp(min=1)  # the padding row gets no gradient in a lookup, and in W + Δ the same
    trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
    wanted = [*trained, *([x.requires_grad_()] if x.is_floating_point() else [])]
    state = layer_state(model.layer)
    fast, reference = model(x), state.view.forward_with(state.deltas("default"), x)
    torch.testing.assert_close(fast, reference, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(reference)
    for ours, theirs in zip(
        torch.autograd.grad(fast, wanted, direction),
        torch.autograd.grad(reference, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fallback_of_a_method_without_a_fast_forward(kind: str) -> None:
    class Slow(LoRA):
        post = Base.post

    model, same = make(kind, 5, 3), make(kind, 5, 3)
    same.load_state_dict(model.state_dict())
    adapt(model, Slow(("layer",), rank=2))
    adapt(same, LoRA(("layer",), rank=2))
    randomise(model)
    randomise(same)
    x = example(kind, 5, (2, 4), 0)
    torch.testing.assert_close(model(x), same(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("initialisation", ["kaiming", "gaussian"])
def test_an_adapter_starts_at_zero_to_the_bit(kind: str, initialisation: str) -> None:
    model, x = make(kind, 5, 3), example(kind, 5, (2, 4), 0)
    before = model(x)
    adapt(model, LoRA(("layer",), initialisation=initialisation))
    assert torch.equal(model(x), before)


def test_an_input_given_by_its_name() -> None:
    model = make("linear", 5, 3)
    adapt(model, LoRA(("layer",)))
    randomise(model)
    x = example("linear", 5, (2,), 0)
    assert torch.equal(model.layer(input=x), model.layer(x))


def test_dropout_drops_the_adapters_input_alone_and_only_in_training() -> None:
    model = make("linear", 400, 1)
    x = torch.ones(1, 400, dtype=torch.float64)
    base = model(x)
    adapt(model, LoRA(("layer",), rank=1, alpha=1, dropout=0.25))
    tensors = adapter_tensors(model, "default")
    for tensor in tensors.values():
        nn.init.ones_(tensor)
    assert torch.allclose(model(x) - base, torch.full((1, 1), 400.0).double())
    model.train()
    torch.manual_seed(0)
    kept = (model(x) - base).item() * 0.75  # survivors are scaled by 1/(1 - p)
    assert kept == pytest.approx(round(kept)) and 240 < kept < 350


@pytest.mark.parametrize("width", [5, 64])
def test_a_subclass_with_a_forward_of_its_own_obeys_the_law(width: int) -> None:
    scaled = OneLayer(BartScaledWordEmbedding(9, width, 0, embed_scale=3.0)).double()
    adapt(scaled, LoRA(("layer",), rank=2, alpha=2))
    randomise(scaled)
    A, B = adapter_tensors(scaled, "default").values()
    x = torch.tensor([[1, 2, 8]])
    expected = 3 * (scaled.layer.weight + (B @ A).T)[x]
    torch.testing.assert_close(scaled(x), expected)
    positions = OneLayer(OPTLearnedPositionalEmbedding(9, width)).double()
    adapt(positions, LoRA(("layer",), rank=2, alpha=2))
    randomise(positions)
    A, B = adapter_tensors(positions, "default").values()
    table = positions.layer.weight + (B @ A).T
    mask = torch.ones(1, 4, dtype=torch.long)
    expected = table[torch.arange(4) + positions.layer.offset][None]
    torch.testing.assert_close(positions(mask, past_key_values_length=0), expected)


def test_layers_that_cannot_be_adapted_are_refused() -> None:
    clipped = OneLayer(nn.Embedding(5, 3, max_norm=1.0))
    counted = OneLayer(nn.Embedding(5, 3, scale_grad_by_freq=True))
    square = OneLayer(parametrizations.orthogonal(nn.Linear(3, 3)))
    pruned = OneLayer(prune.l1_unstructured(nn.Linear(5, 3), "weight", 0.5))
    lazy = OneLayer(nn.LazyLinear(3))
    moved = make("linear", 5, 3)
    moved.layer.forward = moved.layer.forward  # as accelerate does
    packed = make("linear", 5, 3)
    packed.layer.weight = nn.Parameter(packed.layer.weight.to(torch.int8), requires_grad=False)
    taken = make("linear", 5, 3)
    taken.layer.lora_A = nn.Linear(2, 2)
    for model, said in (
        (clipped, "max_norm"),
        (counted, "scale_grad_by_freq"),
        (square, "layer: A ParametrizedLinear whose weight is computed from other tensors"),
        (pruned, "A Linear whose weight is computed .* prune.remove"),
        (lazy, "layer: A LazyLinear has no shape before its first call. Run the model once"),
        (moved, "put its own forward"),
        (packed, "quantised weight"),
        (taken, "lora_A already"),
    ):
        kind = type(model.layer)
        with pytest.raises(DeltafitError, match=said):
            adapt(model, LoRA(("layer",)))
        assert type(model.layer) is kind and "deltafit_adapters" not in model.__dict__
    with pytest.raises(DeltafitError, match="A LayerNorm cannot be adapted; linear layers"):
        view_of(nn.LayerNorm(3))


def test_a_fused_encoder_layer_does_not_pass_the_adapter_by() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    plain = anatomy(model)
    adapt(model, LoRA(target_modules="all-linear"))
    randomise(model)
    x = torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        adapted = model(x), model(x, src_key_padding_mask=padding)
        merge(model)
        merged = model(x), model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(adapted[0], merged[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted[1][~padding], merged[1][~padding], rtol=1e-5, atol=1e-5)
    unmerge(model)
    remove_adapter(model, "default")
    assert anatomy(model) == plain
