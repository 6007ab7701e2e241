"""Virtual tokens before keys and values: against attention written out, and against PEFT's."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    disabled,
    layer_state,
    load_adapter,
    merge,
    quantise,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Bottleneck, LoRA, Prefix, parse_method
from deltafit.tasks.classification import logits_of
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import anatomy, head_of, logits, on_one_base, randomise
from tests.engine.ragged import classifier
from tests.tiny_models import ENCODERS_ALONE, tiny_inputs, tiny_model

ATTENTION = {
    "bert": "attention.self",
    "roberta": "attention.self",
    "electra": "attention.self",
    "distilbert": "attention",
    "modernbert": "attn",
    "gpt2": "attn",
    "gpt_neox": "attention",
    "opt": "self_attn",
    "llama": "self_attn",
    "qwen3": "self_attn",  # heads are wider than their share of the model's width
    "gemma": "self_attn",
}
EVERY = (*ATTENTION, "albert")
WRITTEN_OUT = "written_out"


def attention_with(prefixes: dict[nn.Module, tuple[Tensor, Tensor]]) -> Any:
    """The paper's formula, for the rows of a batch; every token sees the virtual ones."""

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor,
        scaling: float | None = None, position_bias: Tensor | None = None, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        rows, heads, width = len(q), k.shape[1], k.shape[3]
        virtual = [p.unflatten(1, (heads, width)) for p in prefixes[module]]
        keys, values = (
            torch.cat([torch.stack([p] * rows).transpose(1, 2), own], 2)
            for p, own in zip(virtual, (k, v), strict=True)
        )
        groups = q.shape[1] // heads
        keys, values = (each.repeat_interleave(groups, 1) for each in (keys, values))
        scores = torch.einsum("rhqw,rhkw->rhqk", q, keys) * (scaling or width**-0.5)
        count = len(virtual[0])
        if position_bias is not None:  # none is counted to a virtual token
            scores[..., count:] += position_bias
        scores[..., count:] = scores[..., count:].masked_fill(~mask, -torch.inf)
        return torch.einsum("rhqk,rhkw->rqhw", scores.softmax(-1), values), None

    return attend


def every_mask(*arguments: Any, **options: Any) -> Any:
    """Masks that are always written out."""
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*arguments, **{**options, **skips})


@pytest.fixture
def _written_out() -> Iterator[None]:
    AttentionMaskInterface.register(WRITTEN_OUT, every_mask)
    yield
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(WRITTEN_OUT, None)


@pytest.mark.usefixtures("_written_out")
@pytest.mark.parametrize("architecture", [*ATTENTION, *ENCODERS_ALONE])
def test_the_formula_in_float64(architecture: str) -> None:
    model = classifier(architecture).double()
    adapt(model, Prefix(count=4))
    randomise(model)
    tensors = adapter_tensors(model, "default")
    name = ATTENTION.get(architecture, "SelfAttention")
    places = [n for n, _ in model.named_modules() if n.endswith(f".{name}")]
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in tensors)) == places
    assert len(places) == 3
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    plain = classifier(architecture).double().requires_grad_(False)
    prefixes = {
        plain.get_submodule(n): (leaves[f"{n}.prefix_key"], leaves[f"{n}.prefix_value"])
        for n in places
    }
    AttentionInterface.register(WRITTEN_OUT, attention_with(prefixes))
    getattr(plain, "encoder", plain).set_attn_implementation(WRITTEN_OUT)
    found, expected = (logits_of(m, tiny_inputs(m)) for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(found.square().sum(), list(tensors.values()))
    oracle = torch.autograd.grad(expected.square().sum(), list(leaves.values()))
    for ours, theirs in zip(gradients, oracle, strict=True):
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, size))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "qwen2"])
def test_pefts_logits_with_the_same_keys_and_values(architecture: str) -> None:
    model, count = tiny_model(architecture), 4
    adapt(model, Prefix(count=count))
    randomise(model)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=count)
    theirs = peft.get_peft_model(tiny_model(architecture), config).eval()
    embedding = theirs.prompt_encoder["default"].embedding
    # One row a virtual token: the first block's keys, its values, the second block's keys, ...
    ours = torch.cat(list(adapter_tensors(model, "default").values()), 1)
    assert embedding.weight.shape == ours.shape
    embedding.weight.data.copy_(ours)
    batch = tiny_inputs(model)
    # PEFT counts a text's positions from behind the virtual tokens, and here they take none.
    places = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    with torch.no_grad():
        expected = theirs(**batch, position_ids=places - count).logits
    assert not torch.allclose(expected, logits(tiny_model(architecture)), atol=1e-2)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", EVERY)
def test_it_leaves_the_base_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture)
    before, start = anatomy(model), logits(model)
    adapt(model, Prefix(count=3), head=head_of(model))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(tensor) for tensor in adapter_tensors(model, "default").values()}
    randomise(model)
    changed = logits(model)
    assert not torch.allclose(changed, start, atol=1e-2)
    with disabled(model):
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)
    model(**tiny_inputs(model)).logits.sum().backward()
    assert all(tensor.grad is not None for tensor in adapter_tensors(model, "default").values())
    model.zero_grad()
    remove_adapter(model, "default")
    assert torch.equal(logits(model), start) and anatomy(model) == before


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "gemma2"])
def test_eager_attention(architecture: str) -> None:
    model = tiny_model(architecture)
    model.set_attn_implementation("eager")
    adapt(model, Prefix(count=3))
    randomise(model)
    eager = logits(model)
    assert not torch.allclose(eager, logits(tiny_model(architecture)), atol=1e-2)
    if architecture != "gemma2":  # whose scores are capped, in eager attention alone
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(logits(model), eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_a_mask_and_behind_a_cache(implementation: str) -> None:
    model = tiny_model("llama", task="base")
    model.set_attn_implementation(implementation)
    adapt(model, Prefix(count=3))
    randomise(model)
    ids = tiny_inputs(model, batch=1)["input_ids"]
    with torch.no_grad():
        whole = model(ids).last_hidden_state
        masked = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        start = model(ids[:, :3], use_cache=True)
        rest = model(ids[:, 3:5], past_key_values=start.past_key_values)
        last = model(ids[:, 5:6], past_key_values=rest.past_key_values).last_hidden_state
    steps = torch.cat([start.last_hidden_state, rest.last_hidden_state, last], 1)
    torch.testing.assert_close(masked, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(steps, whole[:, :6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(architecture: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(architecture)
        adapt(model, Prefix(count=3))
        randomise(model)
        if checkpointing:
            enable_gradient_checkpointing(model)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        model(**tiny_inputs(model)).logits.square().sum().backward()
        gradients.append([t.grad for t in adapter_tensors(model, "default").values()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_it_is_saved_and_loaded_and_copied_whole(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapt(model, Prefix(count=3, layers=(0, -1)), head=head_of(model))
    randomise(model)
    save_adapter(model, tmp_path)
    stored = read_adapter(tmp_path)
    assert stored.method == Prefix(count=3, layers=(0, -1))
    # Two heads of keys, eight wide, in two blocks.
    shapes = {n: tuple(t.shape) for n, t in stored.tensors.items() if "prefix" in n}
    assert len(shapes) == 4 and set(shapes.values()) == {(3, 16)}
    other = tiny_model("llama")
    load_adapter(other, stored)
    assert torch.equal(logits(other), logits(model))
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    randomise(twin, seed=7)
    assert torch.equal(logits(other), logits(model))
    assert not torch.allclose(logits(twin), logits(model))


def test_several_on_one_base_with_their_own_heads() -> None:
    model = tiny_model("bert")
    before, start = anatomy(model), logits(model)
    methods = {"two": Prefix(count=2), "five": LoRA(rank=2), "four": Prefix(count=5, layers=(1,))}
    methods["three"] = Bottleneck(size=3)
    outputs = on_one_base(model, methods)
    for name in ("two", "five", "three"):
        remove_adapter(model, name)
    activate(model, "four")
    assert torch.equal(logits(model), outputs["four"])
    remove_adapter(model, "four")
    assert torch.equal(logits(model), start) and anatomy(model) == before


@pytest.mark.parametrize("architecture", ["deberta-v2", "mpnet"])
def test_attention_of_a_models_own_is_refused(architecture: str) -> None:
    model = tiny_model(architecture)
    before = anatomy(model)
    with pytest.raises(DeltafitError, match="past transformers' attention interface"):
        adapt(model, Prefix())
    assert anatomy(model) == before


def test_on_a_quantised_base() -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_model("bert")
    quantise(model, "int8")
    start = logits(model)
    adapt(model, Prefix(count=2))
    randomise(model)
    assert not torch.allclose(logits(model), start, atol=1e-2)
    model(**tiny_inputs(model)).logits.sum().backward()
    assert all(tensor.grad is not None for tensor in adapter_tensors(model, "default").values())


def test_what_cannot_be() -> None:
    for count in (0, 2.0, True):
        with pytest.raises(UsageError, match="count must be a whole number of at least 1"):
            Prefix(count=count)  # type: ignore[arg-type]
    assert parse_method("prefix:count=3,layers=0") == Prefix(count=3, layers=(0,))
    model = tiny_model("bert")
    adapt(model, Prefix(count=2))
    with pytest.raises(DeltafitError, match="cannot be merged: prefix adds computation"):
        merge(model)
    attention = model.bert.encoder.layer[0].attention.self
    assert layer_state(attention).active == "default"
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = "flash_attention_2"
    with pytest.raises(DeltafitError, match="attn_implementation='sdpa'"):
        logits(model)
