"""Trained embeddings before a text's own: against plain models that are given longer texts."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    EsmConfig,
    EsmForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    disabled,
    load_adapter,
    merge,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import LoRA, Method, Prefix, Prompt, parse_method
from deltafit.tasks.pooling import POOLINGS, PooledClassifier
from tests.adapters.adapted import anatomy, head_of, logits, on_one_base, randomise
from tests.tiny_models import HIDDEN, TwoTower, tiny_inputs, tiny_model

ENCODERS = ("bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v2", "mpnet")
DECODERS = ("gpt2", "gpt_neox", "opt", "llama", "gemma")
COUNT = 4


def prompt_of(model: torch.nn.Module) -> Tensor:
    (prompt,) = (t for n, t in adapter_tensors(model, "default").items() if n.endswith("prompt"))
    return prompt


def longer(plain: torch.nn.Module, prompt: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The states of a text's own tokens, of a plain model that is given all embeddings."""
    own = plain.get_input_embeddings()(batch["input_ids"])
    rows = len(own)
    embeddings = torch.cat([torch.stack([prompt] * rows), own], 1)
    seen = torch.cat([torch.ones(rows, len(prompt)), batch["attention_mask"]], 1).long()
    output = plain(inputs_embeds=embeddings, attention_mask=seen)
    return output.last_hidden_state[:, len(prompt) :]


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_states_and_gradients_in_float64(architecture: str) -> None:
    model = tiny_model(architecture, task="base").double()
    adapt(model, Prompt(count=COUNT))
    randomise(model)
    leaf = prompt_of(model).detach().requires_grad_()
    plain = tiny_model(architecture, task="base").double().requires_grad_(False)
    batch = tiny_inputs(model)
    real = batch["attention_mask"].bool()
    found = model(**batch).last_hidden_state
    assert found.shape[:2] == real.shape
    expected = longer(plain, leaf, batch)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-7, atol=1e-7)
    ours = torch.autograd.grad(found[real].square().sum(), prompt_of(model))
    theirs = torch.autograd.grad(expected[real].square().sum(), leaf)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])
def test_heads_read_the_tokens_that_they_expect(architecture: str) -> None:
    model, plain = tiny_model(architecture), tiny_model(architecture)
    adapt(model, Prompt(count=COUNT))
    randomise(model)
    batch = tiny_inputs(model)
    with torch.no_grad():
        states = longer(getattr(plain, plain.base_model_prefix), prompt_of(model), batch)
        if architecture == "bert":
            expected = plain.classifier(torch.tanh(plain.bert.pooler.dense(states[:, 0])))
        elif architecture == "distilbert":
            expected = plain.classifier(torch.relu(plain.pre_classifier(states[:, 0])))
        else:
            ends = batch["attention_mask"].sum(1) - 1
            expected = plain.score(states[torch.arange(len(ends)), ends])
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_heads_leave_virtual_tokens_out(pooling: str) -> None:
    model = PooledClassifier(tiny_model("bert", task="base"), HIDDEN, 3, pooling, 0.0)  # type: ignore[arg-type]
    adapt(model, Prompt(count=COUNT), head=["classifier.weight", "classifier.bias"])
    randomise(model)
    model.eval()
    batch = tiny_inputs(model.encoder)
    plain = tiny_model("bert", task="base")
    with torch.no_grad():
        states = longer(plain, prompt_of(model), batch)
        lengths = batch["attention_mask"].sum(1)
        rows = [state[:length] for state, length in zip(states, lengths, strict=True)]
        features = {
            "cls": [row[0] for row in rows],
            "last": [row[-1] for row in rows],
            "mean": [row.mean(0) for row in rows],
        }[pooling]
        expected = model.classifier(torch.stack(features))
        torch.testing.assert_close(model(**batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pefts_logits_with_the_same_embeddings(architecture: str) -> None:
    model = tiny_model(architecture)
    adapt(model, Prompt(count=COUNT))
    randomise(model)
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=COUNT)
    theirs = peft.get_peft_model(tiny_model(architecture), config).eval()
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(prompt_of(model))
    # PEFT gives embeddings alone, so a decoder's head knows no padding and reads the last place.
    row = {name: tensor[:1] for name, tensor in tiny_inputs(model).items()}
    with torch.no_grad():
        expected = theirs(**row).logits
        torch.testing.assert_close(model(**row).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits(tiny_model(architecture))[:1], atol=1e-2)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_pefts_states_with_the_same_embeddings(architecture: str) -> None:
    """PEFT's head reads the first virtual token there, and ours the text's, of the same states."""
    model = tiny_model(architecture)
    adapt(model, Prompt(count=COUNT))
    randomise(model)
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=COUNT)
    theirs = peft.get_peft_model(tiny_model(architecture), config).eval()
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(prompt_of(model))
    states: list[Tensor] = []
    for each in (model, theirs.get_base_model()):
        encoder = getattr(each, each.base_model_prefix)
        encoder.register_forward_hook(
            lambda module, args, output: states.append(output.last_hidden_state.detach())
        )
    batch = tiny_inputs(model)
    model(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    assert states[1].shape[1] == states[0].shape[1] + COUNT
    torch.testing.assert_close(states[0][real], states[1][:, COUNT:][real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_it_leaves_the_base_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture)
    before, start = anatomy(model), logits(model)
    adapt(model, Prompt(count=COUNT), head=head_of(model))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(tensor) for tensor in adapter_tensors(model, "default").values()}
    # It starts as words of the vocabulary.
    table = model.get_input_embeddings().weight
    for row in prompt_of(model):
        assert (table == row).all(1).any()
    randomise(model)
    changed = logits(model)
    assert not torch.allclose(changed, start, atol=1e-2)
    with disabled(model):
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)
    remove_adapter(model, "default")
    assert torch.equal(logits(model), start) and anatomy(model) == before


def test_positions_types_and_embeddings_may_be_given() -> None:
    model = tiny_model("bert")
    adapt(model, Prompt(count=COUNT))
    randomise(model)
    batch, expected = tiny_inputs(model), logits(model)
    ids = batch["input_ids"]
    places = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        found = model(**batch, position_ids=places, token_type_ids=torch.zeros_like(ids)).logits
        torch.testing.assert_close(found, expected)
        own = model.get_input_embeddings()(ids)
        found = model(inputs_embeds=own, attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(found, expected)
        states = model.bert(**batch, output_hidden_states=True)
    assert all(state.shape[:2] == ids.shape for state in states.hidden_states)
    with pytest.raises(DeltafitError, match=r"attention_mask of \[rows, tokens\]"):
        model(ids, attention_mask=torch.ones(3, 1, 7, 7))


def test_several_on_one_base_with_their_own_heads(tmp_path: Path) -> None:
    model = tiny_model("bert")
    before, start = anatomy(model), logits(model)
    methods: dict[str, Method] = {
        "two": Prompt(count=2),
        "five": LoRA(("word_embeddings", "query"), rank=2),
        "four": Prompt(count=5),
        "three": Prefix(count=2),
    }
    outputs = on_one_base(model, methods)
    save_adapter(model, tmp_path, "four")
    other = tiny_model("bert")
    load_adapter(other, read_adapter(tmp_path))
    assert torch.equal(logits(other), outputs["four"])
    twin = copy.deepcopy(other)
    randomise(twin, seed=9)
    assert torch.equal(logits(other), outputs["four"])
    assert not torch.allclose(logits(twin), outputs["four"])
    for name in ("two", "five", "three", "four"):
        remove_adapter(model, name)
    assert torch.equal(logits(model), start) and anatomy(model) == before


def test_what_cannot_be() -> None:
    for count in (0, 2.0, True):
        with pytest.raises(UsageError, match="count must be a whole number of at least 1"):
            Prompt(count=count)  # type: ignore[arg-type]
    assert parse_method("prompt:count=3") == Prompt(count=3)
    with pytest.raises(DeltafitError, match="no repeated blocks"):
        adapt(TwoTower(), Prompt())
    config = T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    with pytest.raises(DeltafitError, match="no encoder or decoder of transformers alone"):
        adapt(T5ForSequenceClassification(config), Prompt())
    model = tiny_model("albert")  # whose pooler is more than a module
    adapt(model, Prompt())
    with pytest.raises(DeltafitError, match="pools its tokens in its own way"):
        logits(model)
    with pytest.raises(DeltafitError, match="cannot be merged: prompt adds computation"):
        merge(model)


def test_behind_a_cache_there_is_no_place_for_it() -> None:
    model = tiny_model("llama", task="base")
    adapt(model, Prompt(count=2))
    ids = tiny_inputs(model)["input_ids"]
    first = model(ids[:, :3], use_cache=True)
    with pytest.raises(DeltafitError, match="use_cache=False"):
        model(ids[:, 3:], past_key_values=first.past_key_values)


def test_a_model_that_does_more_with_numbers_than_look_them_up_is_refused() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 33, "mask_token_id": 32}
    config = EsmConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1, token_dropout=True
    )
    with pytest.raises(DeltafitError, match="token_dropout"):
        adapt(EsmForSequenceClassification(config), Prompt())
