"""Adapted models as they are used: copied, saved, compiled, converted, in other precisions."""

import copy
import gc
import tracemalloc
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    disabled,
    load_adapter,
    merge_and_unload,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.methods import LoRA
from tests.adapters.adapted import anatomy, head_of, logits, new_head, randomise
from tests.tiny_models import (
    DECODERS,
    TwoTower,
    tiny_inputs,
    tiny_model,
)


def test_a_model_converted_while_parts_stood_aside() -> None:
    # As moving to a GPU does: what is not in the module tree must follow when it comes back.
    model = tiny_model("bert")
    start = logits(model)
    adapt(model, LoRA(rank=2), name="two", head=head_of(model), initial=new_head(2))
    adapt(model, LoRA(rank=2), name="five", head=head_of(model), initial=new_head(5))
    model.double()
    for name, labels in (("two", 2), ("five", 5)):
        activate(model, name)
        assert logits(model).shape == (3, labels) and logits(model).dtype == torch.float64
    with disabled(model):
        torch.testing.assert_close(logits(model).float(), start)
    merge_and_unload(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_copy_is_independent() -> None:
    model = tiny_model("gpt2")
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model)
    adapted = logits(model)
    copied = copy.deepcopy(model)
    randomise(copied, seed=9)
    assert torch.equal(logits(model), adapted)
    assert not torch.allclose(logits(copied), adapted)
    with disabled(copied), disabled(model):
        assert torch.equal(logits(copied), logits(model))
    remove_adapter(copied, "default")
    assert torch.equal(logits(model), adapted)


def test_save_pretrained_of_an_adapted_model_writes_its_base(tmp_path: Path) -> None:
    for architecture in ("bert", "gpt2", "llama"):
        model = tiny_model(architecture)
        start = logits(model)
        adapt(model, LoRA(), head=head_of(model))
        randomise(model)
        with disabled(model):
            model.save_pretrained(tmp_path / architecture)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / architecture).eval()
        assert torch.equal(logits(again), start)


def test_a_compiled_model_runs_the_adapter_and_notices_a_switch() -> None:
    model, inputs = TwoTower(), (torch.randn(4, 12), torch.randn(4, 20))
    start = model(*inputs)
    adapt(model, LoRA("all-linear", rank=2))
    randomise(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    activate(model, None)
    torch.testing.assert_close(compiled(*inputs), start)


def test_a_frozen_base_under_gradient_checkpointing_trains_the_adapter() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(rank=2))
    randomise(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(**tiny_inputs(model)).logits.sum().backward()
    tensors = adapter_tensors(model, "default").values()
    assert all(t.grad is not None and t.grad.any() for t in tensors)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_with_a_float32_adapter(
    architecture: str, dtype: torch.dtype
) -> None:
    model = tiny_model(architecture).to(dtype)
    start = logits(model)
    targets = ("word_embeddings",) if architecture == "bert" else ("wte", "embed_tokens")
    embedding = targets[0 if architecture != "llama" else 1]
    linear = {"bert": "query", "gpt2": "c_attn", "llama": "q_proj"}[architecture]
    adapt(model, LoRA((linear, embedding)), head=head_of(model))
    tensors = adapter_tensors(model, "default")
    assert {t.dtype for n, t in tensors.items() if "lora" in n} == {torch.float32}
    assert torch.equal(logits(model), start)
    randomise(model, std=0.1)
    plain = logits(model)
    assert plain.dtype == dtype and not torch.equal(plain, start)
    exact = copy.deepcopy(model).float()
    torch.testing.assert_close(plain.float(), logits(exact), rtol=0.1, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = model(**tiny_inputs(model)).logits
        output.float().sum().backward()
    assert all(t.grad is not None and t.grad.any() for t in tensors.values())
    assert {t.grad.dtype for n, t in tensors.items() if "lora" in n} == {torch.float32}


def test_autocast_over_a_float32_base() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(("query", "word_embeddings")), head=head_of(model))
    randomise(model)
    exact = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(model).float(), exact, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("architecture", DECODERS[:2])
def test_generated_text_goes_through_the_adapter(architecture: str) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_model(architecture).config
    model = AutoModelForCausalLM.from_config(config).eval()
    adapt(model, LoRA(rank=4))
    randomise(model, std=1.0)
    prompt = torch.tensor([[3, 4, 5]])
    words = model.generate(prompt, max_new_tokens=5, do_sample=False)
    with disabled(model):
        base = model.generate(prompt, max_new_tokens=5, do_sample=False)
    assert words.shape[1] > 3 and not torch.equal(words, base)


@pytest.mark.slow
def test_a_thousand_loads_and_removals_leave_nothing_behind(tmp_path: Path) -> None:
    model, inputs = TwoTower(), (torch.randn(4, 12), torch.randn(4, 20))
    head = ("item.2.weight", "item.2.bias")
    adapt(model, LoRA(("user.0",), rank=1), name="other", head=head)
    randomise(model, "other")
    save_adapter(model, tmp_path, "other")
    stored = read_adapter(tmp_path)
    start, output = anatomy(model), model(*inputs)

    def cycles(count: int) -> int:
        for _ in range(count):
            load_adapter(model, stored)
            remove_adapter(model, "default")
        gc.collect()
        return len(gc.get_objects())

    objects = cycles(20)  # caches fill
    assert cycles(1000) - objects < 100  # one a cycle would be the least of leaks
    tracemalloc.start()  # makes everything slower: fewer cycles see what the collector does not
    cycles(10)
    memory = tracemalloc.get_traced_memory()[0]
    cycles(100)
    grown = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()
    assert grown < 100_000  # the interpreter's cache of names grows a little at first
    activate(model, "other")
    assert anatomy(model) == start
    assert torch.equal(model(*inputs), output)
