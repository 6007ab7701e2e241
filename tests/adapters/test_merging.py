"""Merging: W + Δ in float32 rounded once, the very bits back, tied weights untied."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    disabled,
    merge,
    merge_and_unload,
    model_adapters,
    remove_adapter,
    unmerge,
)
from deltafit.errors import DeltafitError
from deltafit.methods import Full, Head, LastBlocks, LoRA
from tests.adapters.adapted import anatomy, bits, head_of, logits, randomise
from tests.tiny_models import ARCHITECTURES, SHARED_BLOCKS, tiny_inputs, tiny_model

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SHARED_BLOCKS])
def test_merged_logits_are_the_adapted_ones(architecture: str) -> None:
    model = tiny_model(architecture).double()
    embeddings = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    adapt(model, LoRA(f"re:.*(query|q_proj|c_attn|c_fc|Wqkv|q_lin|dense|{embeddings})"))
    randomise(model)
    before, adapted = anatomy(model), logits(model)
    merge(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-9, atol=1e-9)
    unmerge(model)
    assert torch.equal(logits(model), adapted)
    assert anatomy(model) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_unmerging_gives_the_very_bits_back(dtype: torch.dtype) -> None:
    model = tiny_model("gpt2").to(dtype)
    plain = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    adapt(model, LoRA(("c_attn", "wte", "mlp.c_proj")), head=head_of(model))
    randomise(model)
    adapted, before = logits(model), anatomy(model)
    merge(model)
    assert bits(model.transformer.wte.weight) != plain["transformer.wte.weight"]
    unmerge(model)
    assert anatomy(model) == before and bits(logits(model)) == bits(adapted)
    remove_adapter(model, "default")
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == plain


@pytest.mark.parametrize("dtype", HALF)
def test_a_half_precision_sum_is_rounded_once(dtype: torch.dtype) -> None:
    model = tiny_model("bert").to(dtype)
    adapt(model, LoRA(("query",), rank=4, alpha=2))
    randomise(model, std=0.05)
    query = model.bert.encoder.layer[0].attention.self.query
    tensors = adapter_tensors(model, "default")
    A, B = (
        tensors[f"bert.encoder.layer.0.attention.self.query.{n}"].double()
        for n in ("lora_A", "lora_B")
    )
    exact = query.weight.double() + 0.5 * B @ A
    merge(model)
    # within half a unit in the last place, plus float32's own rounding of the sum
    assert (
        torch.equal(query.weight, exact.to(dtype))
        or (
            (query.weight.double() - exact).abs()
            <= exact.abs() * torch.finfo(dtype).eps / 2 * 1.01 + 1e-7
        ).all()
    )


def test_autocast_does_not_coarsen_the_sum() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(("query",)))
    randomise(model)
    adapted = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        merge(model)
    torch.testing.assert_close(logits(model), adapted)


def test_merging_three_times_is_merging_once() -> None:
    model = tiny_model("llama").bfloat16()
    adapt(model, LoRA(rank=2))
    randomise(model)
    merge(model)
    once = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    for _ in range(2):
        unmerge(model)
        merge(model)
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == once


def test_merging_twice_and_unmerging_nothing_are_errors() -> None:
    model = tiny_model("bert")
    with pytest.raises(DeltafitError, match="No adapter is active"):
        merge(model)
    with pytest.raises(DeltafitError, match="No adapter is merged"):
        unmerge(model)
    adapt(model, LoRA())
    randomise(model)
    with pytest.raises(DeltafitError, match="No adapter is merged"):
        unmerge(model)
    merge(model)
    merged = anatomy(model)
    with pytest.raises(DeltafitError, match="'default' is merged already"):
        merge(model)
    assert anatomy(model) == merged
    unmerge(model)
    activate(model, None)
    with pytest.raises(DeltafitError, match="No adapter is active"):
        merge(model)


def test_a_merge_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(("query", "value")))
    randomise(model)
    before, calls = anatomy(model), []
    deltas = LoRA.deltas

    def failing(*args: object) -> dict[str, torch.Tensor]:
        calls.append(args)
        if len(calls) == 4:
            raise MemoryError
        return deltas(*args)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(LoRA, "deltas", failing)
    with pytest.raises(MemoryError):
        merge(model)
    assert anatomy(model) == before and model_adapters(model).merged is None


def test_a_weight_that_stopped_being_a_parameter_is_found_before_anything_changes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    base = model(x)
    adapt(model, LoRA(("0", "1"), rank=2))
    randomise(model)
    prune.identity(model[1], "weight")
    before, adapted = anatomy(model), model(x)
    with pytest.raises(DeltafitError, match=r"1\.weight is computed from other tensors"):
        merge(model)
    assert anatomy(model) == before and model_adapters(model).merged is None
    assert torch.equal(model(x), adapted)
    activate(model, None)
    assert torch.equal(model(x), base)
    prune.remove(model[1], "weight")  # as the sentence says
    activate(model, "default")
    merge(model)
    torch.testing.assert_close(model(x), adapted)


def lm() -> GPT2LMHeadModel:
    model: GPT2LMHeadModel = AutoModelForCausalLM.from_config(tiny_model("gpt2").config)
    return model.eval()


def test_a_tied_weight_is_untied_by_merging_and_tied_again(tmp_path: Path) -> None:
    model = lm()
    wte, head = model.transformer.wte, model.lm_head
    assert wte.weight is head.weight
    before, start = anatomy(model), bits(head.weight)
    adapt(model, LoRA(("wte", "c_attn")))
    randomise(model)
    adapted = logits(model)
    assert wte.weight is head.weight  # the adapter leaves them tied
    merge(model)
    assert wte.weight is not head.weight and bits(head.weight) == start != bits(wte.weight)
    torch.testing.assert_close(logits(model), adapted)
    unmerge(model)
    assert wte.weight is head.weight
    assert torch.equal(logits(model), adapted)
    remove_adapter(model, "default")
    assert anatomy(model) == before
    # merged for good, it must not be tied again when transformers loads it
    adapt(model, LoRA(("wte", "c_attn")))
    randomise(model)
    merge_and_unload(model)
    assert model.config.tie_word_embeddings is False
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    torch.testing.assert_close(logits(again), adapted)


def test_a_tied_weight_trained_whole_stays_tied(tmp_path: Path) -> None:
    model = lm()
    before = anatomy(model)
    adapt(model, LoRA(("c_attn",), trained_modules=("transformer.wte",)))
    randomise(model)
    assert model.transformer.wte.weight is model.lm_head.weight
    trained = logits(model)
    merge_and_unload(model)
    assert model.transformer.wte.weight is model.lm_head.weight
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), trained, rtol=1e-4, atol=1e-4
    )
    assert list(before["keys"]) == list(model.state_dict())  # type: ignore[call-overload]


@pytest.mark.parametrize("method", [LoRA(), Head(), LastBlocks(1), Full()], ids=str)
def test_merged_for_good_the_model_is_plain(method: LoRA, tmp_path: Path) -> None:
    model = tiny_model("bert")
    before = anatomy(model)
    adapt(model, LoRA(("key",)), name="other")
    adapt(model, method, head=head_of(model))
    randomise(model)
    adapted = logits(model)
    merge_and_unload(model)
    torch.testing.assert_close(logits(model), adapted)
    for part in ("classes", "attributes", "keys", "gradients", "hooks"):
        assert anatomy(model)[part] == before[part]
    assert model_adapters(model).adapters == {}
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(type(model).from_pretrained(tmp_path).eval()), adapted)
    adapt(model, LoRA())  # and can be adapted anew
    assert torch.equal(logits(model), logits(type(model).from_pretrained(tmp_path).eval()))


def test_one_of_several_adapters_is_merged() -> None:
    model = tiny_model("bert")
    start = logits(model)
    adapt(model, LoRA(("query", "key")), name="one")
    adapt(model, LoRA(("query", "value")), name="two", head=head_of(model))
    outputs = {}
    for seed, name in enumerate(("one", "two")):
        randomise(model, name, seed=seed)
        activate(model, name)
        outputs[name] = logits(model)
    for name in ("one", "two", "one"):
        activate(model, name)
        merge(model)
        torch.testing.assert_close(logits(model), outputs[name])
        unmerge(model)
    activate(model, "two")
    assert torch.equal(logits(model), outputs["two"])
    with disabled(model):
        assert torch.equal(logits(model), start)


def test_merged_weights_take_no_part_in_a_graph() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA())
    merge(model)
    assert not model(**tiny_inputs(model)).logits.requires_grad
    unmerge(model)
    assert model(**tiny_inputs(model)).logits.requires_grad
