"""Tied weights trained whole: one tensor here, a copy under each name in PEFT, which unties."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from deltafit.adapters import adapt, adapter_tensors, load_adapter, read_adapter, save_adapter
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Full, Head, LoRA, Method
from tests.adapters.adapted import EXACT, anatomy, logits, randomise, theirs_on_disk
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FIRST, TWIN = "transformer.wte.weight", "lm_head.weight"


def lm() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model: GPT2LMHeadModel = AutoModelForCausalLM.from_config(tiny_model("gpt2").config)
    return model.eval()


@pytest.mark.parametrize("module", ["transformer.wte", "lm_head"])
def test_ours_loads_in_peft_and_comes_back(module: str, tmp_path: Path) -> None:
    model = lm()
    adapt(model, LoRA(("c_attn",), trained_modules=(module,)))
    assert FIRST in adapter_tensors(model, "default")  # the same tensor by either name
    randomise(model)
    assert model.transformer.wte.weight is model.lm_head.weight
    adapted = logits(model)
    save_adapter(model, tmp_path, task_type="CAUSAL_LM")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["transformer.wte", "lm_head"]
    theirs = peft.PeftModel.from_pretrained(lm(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), adapted, **EXACT)
    theirs.save_pretrained(tmp_path / "again")  # without our metadata
    for folder in (tmp_path, tmp_path / "again"):
        again = lm()
        load_adapter(again, read_adapter(folder))
        torch.testing.assert_close(logits(again), adapted, **EXACT)
        assert again.transformer.wte.weight is again.lm_head.weight


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (["wte"], r"for the former alone: PEFT untied the two.*model\.lm_head\.weight = nn\.Par"),
        (["lm_head"], "'lm_head.weight' and 'transformer.wte.weight' are one tied parameter"),
        (["wte", "lm_head"], "has other values for each. Untie them first"),
    ],
    ids=str,
)
def test_what_peft_untied_is_refused_until_the_base_is_untied(
    modules: list[str], said: str, tmp_path: Path
) -> None:
    theirs = theirs_on_disk(lm(), tmp_path, "CAUSAL_LM", modules_to_save=modules)
    model = lm()
    before = anatomy(model)
    with pytest.raises(DeltafitError, match=said):
        load_adapter(model, read_adapter(tmp_path))
    assert anatomy(model) == before
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    load_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)


@pytest.mark.parametrize("method", [Full(), Head()], ids=str)
def test_what_peft_does_not_read_is_written_once(method: Method, tmp_path: Path) -> None:
    model = lm()
    adapt(model, method, head=[TWIN])
    randomise(model)
    save_adapter(model, tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert {f"base_model.model.{FIRST}"} == {n for n in names if n.endswith((FIRST, TWIN))}
    again = lm()
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(logits(again), logits(model))


def test_starting_values_by_any_name_but_not_two_of_them() -> None:
    values = torch.randn(lm().lm_head.weight.shape)
    model = lm()
    adapt(model, Head(), head=[TWIN], initial={TWIN: values})
    assert torch.equal(model.transformer.wte.weight, values)
    before = anatomy(model)
    with pytest.raises(DeltafitError, match="other values for each"):
        adapt(model, Head(), name="b", head=[TWIN], initial={TWIN: values, FIRST: values + 1})
    assert anatomy(model) == before


def test_a_module_whose_weight_is_trained_whole_elsewhere_is_no_target() -> None:
    with pytest.raises(UsageError, match="means lm_head, which is trained and saved whole"):
        adapt(lm(), LoRA(("lm_head",), trained_modules=("transformer.wte",)))
