"""The context: what it refuses, and that it leaves nothing behind."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BartConfig

from deltafit.adapters import adapt
from deltafit.engine import CannotPackError, bulk_dropout, packed
from deltafit.methods import LoRA
from deltafit.tasks.pooling import PooledClassifier
from tests.adapters.adapted import anatomy, head_of
from tests.engine.ragged import PACKABLE, classifier, ragged, shapes_in_blocks
from tests.tiny_models import HIDDEN, PAD, tiny_model


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that the context must put back."""
    config = model.config
    return anatomy(model) | {
        "config": config.to_dict(),
        "attention": config._attn_implementation,
        "names": set(vars(config)),
    }


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_the_model_is_left_as_it_was(architecture: str, implementation: str) -> None:
    model = classifier(architecture)
    getattr(model, "encoder", model).set_attn_implementation(implementation)
    adapt(model, LoRA(rank=2), head=head_of(model))
    before = state_of(model)
    with packed(model), bulk_dropout(model):
        assert list(model.state_dict()) == before["keys"]
        assert model.config.to_dict() == before["config"]
        model(**ragged((5, 2)))
    assert state_of(model) == before
    again = pickle.loads(pickle.dumps(model))
    assert state_of(again)["bits"] == before["bits"]


def test_a_failure_inside_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt), packed(model), bulk_dropout(model):
        model(**ragged((5, 2)))
        raise KeyboardInterrupt
    assert state_of(model) == before
    with pytest.raises(IndexError), packed(model):
        model(input_ids=torch.tensor([[3, 4, 10_000]]), attention_mask=torch.ones(1, 3).long())
    assert state_of(model) == before


def test_inside_itself_it_does_nothing() -> None:
    model, batch = tiny_model("bert"), ragged((5, 2))
    before, expected = state_of(model), model(**batch).logits
    with packed(model), shapes_in_blocks(model) as shapes:
        with packed(model):
            torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
    assert shapes == [(1, 7)] * 2
    assert state_of(model) == before


def test_two_models_at_once_and_a_copy_made_inside() -> None:
    one, other, batch = tiny_model("bert"), tiny_model("gpt2"), ragged((5, 2))
    expected = one(**batch).logits, other(**batch).logits
    with packed(one), packed(other):
        duplicate = copy.deepcopy(one)
        for model, logits in zip((one, other, duplicate), (*expected, expected[0]), strict=True):
            torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=1e-5)


def bart() -> nn.Module:
    config = BartConfig(
        **{"vocab_size": 64, "d_model": 32, "max_position_embeddings": 64, "pad_token_id": PAD},
        **{"encoder_layers": 2, "encoder_ffn_dim": 48, "encoder_attention_heads": 4},
        **{"decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": 4},
    )
    return AutoModelForSequenceClassification.from_config(config)


def configured(architecture: str, **settings: Any) -> nn.Module:
    model = tiny_model(architecture)
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


REFUSED = {
    "DebertaV2Model .* past transformers' attention interface": lambda: tiny_model("deberta-v2"),
    "MPNetModel .* past transformers' attention interface": lambda: tiny_model("mpnet"),
    "AlbertModel .* uses one block for several layers": lambda: tiny_model("albert"),
    "BartDecoder .* has an encoder and a decoder": bart,
    "T5Stack .* has an encoder and a decoder": lambda: tiny_model("t5"),
    "leaves out blocks at random": lambda: configured("opt", layerdrop=0.1),
    "more than its last state": lambda: configured("gpt2", output_hidden_states=True),
    "TransformerEncoder is no model of transformers": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
    ),
    "Linear has no repeated blocks": lambda: nn.Linear(2, 2),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_models_that_cannot_be_packed(sentence: str) -> None:
    model = REFUSED[sentence]()
    with pytest.raises(CannotPackError, match=sentence), packed(model):
        pass


def test_attention_with_terms_of_its_own_is_refused_when_called() -> None:
    model = tiny_model("gemma2")
    before = anatomy(model)
    with pytest.raises(CannotPackError, match=r"Gemma2Attention .* softcap"), packed(model):
        model(**ragged((5, 2)))
    assert anatomy(model) == before


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions", "use_cache"])
def test_what_needs_a_padded_run_is_refused(asked: str) -> None:
    model, batch = tiny_model("llama", task="base"), ragged((5, 2))
    with packed(model):
        with pytest.raises(CannotPackError, match=f"called with {asked}"):
            model(**batch, **{asked: True})
        assert model(**batch).past_key_values is None
    assert model(**batch).past_key_values is not None  # decoders make one in evaluation


def test_attention_outside_the_blocks_is_refused() -> None:
    model, batch = tiny_model("bert"), ragged((5, 2))
    layouts: list[Any] = []
    with packed(model):
        block = model.bert.encoder.layer[0]
        block.register_forward_pre_hook(lambda module, args: layouts.append(args[1]))
        model(**batch)
        padded = model.bert.embeddings(batch["input_ids"])
        with pytest.raises(CannotPackError, match=r"shape \[2, 4, 5, 8\], .* 7 tokens"):
            block.attention(padded, layouts[0])


def test_it_works_around_a_pooled_head() -> None:
    model = PooledClassifier(tiny_model("bert", task="base"), HIDDEN, 2, "mean", dropout=0.0)
    before = state_of(model)
    with packed(model), shapes_in_blocks(model) as shapes:
        model(**ragged((5, 2)))
    assert shapes == [(1, 7)]
    assert state_of(model) == before
