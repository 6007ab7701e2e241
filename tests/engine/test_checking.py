"""The self-check: silent where packed is padded, and a sentence where it is not."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import adapt
from deltafit.adapters.targets import DEFAULT_TARGETS
from deltafit.engine import attention, check_packing, packed
from deltafit.methods import Full, Head, LoRA, Method
from deltafit.tasks.pooling import PooledClassifier
from tests.adapters.adapted import anatomy, head_of
from tests.engine.ragged import PACKABLE, classifier, ragged
from tests.tiny_models import ENCODERS_ALONE, HIDDEN, SHARED_BLOCKS, tiny_model

BATCH = ragged((9, 5, 1, 5, 7))


@pytest.mark.parametrize("method", [LoRA(rank=2), Head(), Full()], ids=str)
@pytest.mark.parametrize("architecture", PACKABLE)
def test_it_is_silent_where_packed_is_padded(architecture: str, method: Method) -> None:
    model = classifier(architecture)
    adapt(model, method, head=head_of(model))
    assert check_packing(model, BATCH) is None


def test_a_frozen_model_is_checked_forward() -> None:
    model = tiny_model("bert", task="base").requires_grad_(False)
    assert check_packing(model, BATCH) is None
    assert "does not give the same" in (check_packing(spoilt(model, mix_rows), BATCH) or "")


REASONS = {
    "deberta-v2": "DebertaV2Model cannot run packed: it computes attention in its own way",
    "mpnet": "MPNetModel cannot run packed: it computes attention in its own way",
    "gemma2": "Gemma2Attention computes its scores with a softcap, which is not known",
    "albert": "AlbertModel cannot run packed: it uses one block for several layers",
}


@pytest.mark.parametrize("architecture", REASONS)
def test_what_cannot_be_packed_is_the_reason(architecture: str) -> None:
    found = check_packing(tiny_model(architecture), BATCH) or ""
    assert found.startswith(REASONS[architecture])


def test_every_architecture_with_default_targets_packs_or_has_its_reason() -> None:
    known = {*DEFAULT_TARGETS, *SHARED_BLOCKS, *ENCODERS_ALONE}
    assert {*PACKABLE, *REASONS} == known


def spoilt(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Let the attention of a BERT's second block change what it is given."""
    attention = next(m for n, m in model.named_modules() if n.endswith("layer.1.attention"))
    attention.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    return model


def mix_rows(hidden: Tensor) -> Tensor:
    """What a block may do along a row, and must not along a sheet of many."""
    return hidden + 0.01 * hidden.mean(1, keepdim=True)


def fail_without_rows(hidden: Tensor) -> Tensor:
    return hidden.view(5, 9, HIDDEN)


class HalfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.share = 1.0 if len(x) > 1 else 0.5
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0] * ctx.share


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (mix_rows, r"the states of its tokens differs by"),
        (lambda hidden: hidden / (len(hidden) > 1), "the states of its tokens differs by nan"),
        (HalfTheGradient.apply, r"the gradient of bert\.\S+ differs by"),
        (fail_without_rows, r"fails when run packed: shape '\[5, 9, 32\]' is invalid"),
    ],
    ids=["values", "not a number", "gradients", "failure"],
)
def test_a_block_that_needs_its_rows_is_found(change: Any, reason: str) -> None:
    model = spoilt(tiny_model("bert"), change)
    before = anatomy(model)
    found = check_packing(model, BATCH) or ""
    assert re.match(f"BertModel .*{reason}", found), found
    assert anatomy(model) == before


def test_attention_is_checked_as_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout it is not torch's kernel, which a check without dropout would see alone."""
    right = attention.explicit_attention
    monkeypatch.setattr(attention, "explicit_attention", lambda *a, **k: 1.1 * right(*a, **k))
    model = tiny_model("bert")
    assert "the states of its tokens differs" in (check_packing(model, BATCH) or "")
    assert check_packing(model, BATCH, gradients=False) is None  # a classifier that is used
    model.config.attention_probs_dropout_prob = 0.0
    assert check_packing(model, BATCH) is None


def test_a_gradient_that_is_cut_off_is_found() -> None:
    model = tiny_model("bert")
    model.bert.encoder.layer[2].register_forward_pre_hook(
        lambda module, args: (args[0].detach() if len(args[0]) == 1 else args[0], *args[1:])
    )
    found = check_packing(model, BATCH) or ""
    assert re.match("BertModel .*the gradient of bert.embeddings.* differs by nan", found), found


def test_a_head_that_starts_at_zero_hides_nothing() -> None:
    encoder = spoilt(tiny_model("bert", task="base"), mix_rows)
    model = PooledClassifier(encoder, HIDDEN, 2, "mean", dropout=0.0)
    with torch.no_grad():
        assert not model(**BATCH).any()
    adapt(model, LoRA(rank=2), head=["classifier.weight", "classifier.bias"])
    assert "does not give the same" in (check_packing(model, BATCH) or "")


def test_a_batch_that_runs_padded_is_no_proof() -> None:
    found = check_packing(tiny_model("bert"), ragged((5, 2), left=True))
    assert found == "BertModel ran a batch padded that was to be packed."


def test_a_failure_of_the_padded_run_is_not_hidden() -> None:
    with pytest.raises(IndexError):
        check_packing(tiny_model("bert"), ragged((5, 2)) | {"input_ids": torch.full((2, 5), 99)})


def test_it_changes_nothing() -> None:
    model = tiny_model("bert").train()
    model.bert.embeddings.eval()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before, state = anatomy(model), torch.get_rng_state()
    with torch.inference_mode(False), torch.no_grad():
        assert check_packing(model, BATCH) is None
    assert anatomy(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.bert.encoder.training and not model.bert.embeddings.training
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"classifier.weight"} and bool((model.classifier.weight.grad == 1).all())


def test_inside_packed_there_is_nothing_to_compare_with() -> None:
    model = tiny_model("bert")
    with packed(model), pytest.raises(ValueError, match="outside packed"):
        check_packing(model, BATCH)
