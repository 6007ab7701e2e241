"""Attention in bf16: right but for rounding, in training alone, and gone with its context."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deltafit.adapters import adapt
from deltafit.adapters.activations import attention_matrices
from deltafit.engine import (
    attention,
    attention_shape,
    check_attention,
    find_reading,
    first_tokens,
    packed,
    reduced_attention,
)
from deltafit.engine.explicit import explicit_attention
from deltafit.engine.groups import Group
from deltafit.methods import LoRA, Prefix
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import head_of, randomise
from tests.engine.ragged import (
    LENGTHS,
    PACKABLE,
    classifier,
    in_training,
    outputs_and_gradients,
    ragged,
)
from tests.tiny_models import tiny_model


def adapted(architecture: str, probability: float = 0.0) -> Any:
    model = in_training(classifier(architecture), probability)
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model, std=0.1)
    return model


def far(found: Tensor, expected: Tensor) -> float:
    """The size of the difference, as a share of the size of what was expected."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_it_gives_the_same_but_for_rounding(architecture: str, checkpointing: bool) -> None:
    model, batch = adapted(architecture), ragged(LENGTHS["mixed"])
    if checkpointing:
        enable_gradient_checkpointing(model)
    with packed(model):
        logits, gradients = outputs_and_gradients(model, batch)
        with reduced_attention(model):
            found, others = outputs_and_gradients(model, batch)
    assert not torch.equal(found, logits) and far(found, logits) < 5e-2
    assert all(gradient.dtype == torch.float32 for gradient in others.values())
    both = (torch.cat([g[name].flatten() for name in gradients]) for g in (others, gradients))
    assert far(*both) < 5e-2


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5"])
def test_evaluation_stays_as_it_was_to_the_bit(architecture: str) -> None:
    model, batch = adapted(architecture).eval(), ragged(LENGTHS["mixed"])
    with packed(model):
        expected = outputs_and_gradients(model, batch)
        with reduced_attention(model):
            found = outputs_and_gradients(model, batch)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])


def test_it_drops_what_float32_drops() -> None:
    model, batch = adapted("bert", 0.3), ragged(LENGTHS["mixed"])
    logits = []
    with packed(model), reduced_attention(model):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            logits.append(model(**batch).logits.detach())
    with packed(model):
        torch.manual_seed(0)
        float32 = model(**batch).logits.detach()
    assert torch.equal(logits[0], logits[1])
    assert far(logits[0], float32) < 0.1 * far(logits[2], float32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 9, 40)])
def test_it_is_attention_in_float64(causal: bool, lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (sum(lengths), 2, 16)
    sheets = [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(shape, generator=generator)
    group = (Group(lengths, causal, None),)

    def run(tensors: list[Tensor], **options: Any) -> list[Tensor]:
        y = explicit_attention(*tensors, group, group, scaling=0.25, dropout=0.0, **options)
        gradients = torch.autograd.grad(y, tensors, upstream.to(y.dtype))
        return [y.detach(), *gradients]

    exact = run([sheet.double() for sheet in sheets])
    for found, expected in zip(run(sheets, products=torch.bfloat16), exact, strict=True):
        assert found.dtype == torch.float32
        assert 1e-4 < far(found.double(), expected) < 2e-2


def test_the_model_is_what_it_was_when_the_context_ends() -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match="inside packed"), reduced_attention(model):
        pass
    with packed(model):
        inside = model.config._attn_implementation
        with pytest.raises(KeyboardInterrupt), reduced_attention(model):
            assert model.config._attn_implementation != inside
            with packed(model):  # as an evaluation does
                raise KeyboardInterrupt
        assert model.config._attn_implementation == inside


@pytest.mark.parametrize(
    "spoil",
    [lambda y: y * float("nan"), lambda y: 0.5 * (y + y.detach())],
    ids=["forward", "backward alone"],
)
def test_the_check_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    model, batch = adapted("bert", 0.1).eval(), ragged(LENGTHS["mixed"])
    state, right = torch.get_rng_state(), attention.explicit_attention
    with packed(model):
        assert check_attention(model, batch) is None

        def wrong(*args: Any, products: torch.dtype | None = None, **options: Any) -> Tensor:
            output = right(*args, products=products, **options)
            return output if products is None else spoil(output)

        monkeypatch.setattr(attention, "explicit_attention", wrong)
        found = check_attention(model, batch)
    assert found and found.startswith("With its attention in bf16, BertForSequence")
    assert torch.equal(torch.get_rng_state(), state) and not model.training


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert", "llama"])
def test_what_attention_looks_like(architecture: str) -> None:
    model = tiny_model(architecture)
    shape, config = attention_shape(model, 33), model.config
    assert shape is not None and shape.length == 64
    assert shape.heads == config.num_attention_heads
    assert shape.heads * shape.width == config.hidden_size
    assert [attention_shape(model, n).length for n in (1, 2, 64, 65)] == [2, 2, 64, 128]  # type: ignore[union-attr]
    config.num_attention_heads = 0
    assert attention_shape(model, 33) is None


def test_t5_drops_weights_too_and_has_a_width_of_its_own() -> None:
    model = tiny_model("t5", task="base").encoder
    model.config.d_kv, model.config.dropout_rate = 24, 0.1
    shape = attention_shape(model, 33)
    assert shape is not None and (shape.heads, shape.width) == (model.config.num_heads, 24)
    assert attention_matrices(model, packed=True) > 0
    model.config.dropout_rate = 0.0
    assert attention_matrices(model, packed=True) == 0


def test_virtual_tokens_and_first_tokens() -> None:
    model, batch = in_training(classifier("bert"), 1e-9), ragged(LENGTHS["mixed"])
    adapt(model, Prefix(count=3), head=head_of(model))
    randomise(model, std=0.5)
    with packed(model):
        expected, _ = outputs_and_gradients(model, batch)
        with reduced_attention(model):
            found, _ = outputs_and_gradients(model, batch)
    assert 0 < far(found, expected) < 5e-2
    model = in_training(classifier("bert"), 1e-9)
    model.eval()
    layers = find_reading(model, batch)
    assert layers is not None
    model.train()
    with packed(model), first_tokens(model, layers):
        expected, _ = outputs_and_gradients(model, batch)
        with reduced_attention(model):
            found, _ = outputs_and_gradients(model, batch)
    assert 0 < far(found, expected) < 5e-2
