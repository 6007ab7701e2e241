"""transformers' own quantised model under PEFT as oracle: its files, its logits, its gradients."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from deltafit.adapters import (
    QUANTISED,
    adapt,
    adapter_tensors,
    load_adapter,
    quantise,
    read_adapter,
    save_adapter,
)
from deltafit.methods import LoRA
from tests.adapters.adapted import head_of, randomise, theirs_on_disk
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

OUTSIDE = {"bert": ["classifier", "bert.pooler.dense"], "llama": ["score"]}
# Of the same weights. bitsandbytes' int8 product adds up in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

kinds = pytest.mark.parametrize("kind", QUANTISED)
architectures = pytest.mark.parametrize("architecture", OUTSIDE)


def theirs_quantised(architecture: str, kind: str, folder: Path) -> nn.Module:
    """The model as transformers quantises it while loading."""
    tiny_model(architecture).save_pretrained(folder)
    options: dict[str, Any] = {"llm_int8_skip_modules": OUTSIDE[architecture]}
    if kind == "int8":
        options |= {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    else:
        options |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options |= {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(**options),
        device_map="cpu",
        dtype=torch.float32,
    )
    return model


def in_training(model: nn.Module) -> nn.Module:
    """In training mode, where bitsandbytes' layers round no inputs, and nothing is dropped."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def results(model: nn.Module, inputs: dict[str, Tensor], tensors: dict[str, Any]) -> list[Tensor]:
    output = in_training(model)(**inputs).logits
    loss = (output * torch.arange(1.0, output.numel() + 1).view(output.shape).cos()).sum()
    return [output.detach(), *torch.autograd.grad(loss, list(tensors.values()))]


@kinds
@architectures
def test_peft_on_the_same_quantised_base_computes_the_same(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    ours = tiny_model(architecture)
    quantise(ours, kind)  # type: ignore[arg-type]  # of QUANTISED
    adapt(ours, LoRA("all-linear", rank=2), head=head_of(ours))
    randomise(ours, std=0.1)
    save_adapter(ours, tmp_path / "adapter", base_name="somewhere", task_type="SEQ_CLS")
    base = theirs_quantised(architecture, kind, tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    own = {n: t for n, t in adapter_tensors(ours, "default").items() if "lora" in n}
    named = {n: theirs.get_parameter(f"base_model.model.{n}.default.weight") for n in own}
    inputs = tiny_inputs(ours)
    for found, expected in zip(
        results(ours, inputs, own), results(theirs, inputs, named), strict=True
    ):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found / scale, expected / scale, **CLOSE)


@kinds
def test_pefts_adapter_of_a_quantised_base_loads_here(kind: str, tmp_path: Path) -> None:
    base = theirs_quantised("bert", kind, tmp_path / "base")
    theirs = theirs_on_disk(base, tmp_path / "adapter", target_modules=["query", "value"])
    ours = tiny_model("bert")
    quantise(ours, kind)  # type: ignore[arg-type]  # of QUANTISED
    stored = read_adapter(tmp_path / "adapter")
    assert stored.notes == ()
    load_adapter(ours, stored)
    inputs = tiny_inputs(ours)
    with torch.no_grad():
        expected = in_training(theirs)(**inputs).logits
        torch.testing.assert_close(in_training(ours)(**inputs).logits, expected, **CLOSE)
        unquantised = tiny_model("bert")
        load_adapter(unquantised, stored)
        assert not torch.allclose(unquantised(**inputs).logits, expected, atol=1e-3)
