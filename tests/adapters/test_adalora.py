"""AdaLoRA on models: PEFT's logits and gradients, and files both ways."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltafit.adapters import adapt, adapter_tensors, load_adapter, read_adapter, save_adapter
from deltafit.errors import DeltafitError
from deltafit.methods import AdaLoRA, LoRA
from tests.adapters.adapted import EXACT, head_of, logits, randomise
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def theirs_with(model: nn.Module, architecture: str, targets: list[str], **more: Any) -> nn.Module:
    """PEFT's adapter with the values of ours, without its 10⁻⁵ in the scaling."""
    config = peft.AdaLoraConfig(
        task_type="SEQ_CLS", init_r=6, target_r=3, lora_alpha=5, total_step=10,
        target_modules=targets, **more,
    )  # fmt: skip
    theirs = peft.get_peft_model(tiny_model(architecture), config).eval()
    named = dict(theirs.named_parameters())
    for name, tensor in adapter_tensors(model, "default").items():
        if ".lora_" in name:
            named[f"base_model.model.{name}.default"].data.copy_(tensor)
    return theirs


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("bert", ["query", "value"]), ("gpt2", ["c_attn"]), ("llama", ["q_proj", "down_proj"])],
)
def test_logits_and_gradients_are_pefts(architecture: str, targets: list[str]) -> None:
    model = tiny_model(architecture)
    adapt(model, AdaLoRA(tuple(targets), rank=3, initial_rank=6, alpha=5))
    randomise(model)
    theirs = theirs_with(model, architecture, targets)
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)
    for each in (model, theirs):
        each(**tiny_inputs(model)).logits.square().sum().backward()
    named = dict(theirs.named_parameters())
    for name, tensor in adapter_tensors(model, "default").items():
        grad = named[f"base_model.model.{name}.default"].grad
        torch.testing.assert_close(tensor.grad, grad, rtol=1e-4, atol=1e-5)


def test_it_is_saved_as_lora_of_the_ranks_that_are_left(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, AdaLoRA(initial_rank=6, rank=3, alpha=5), head=head_of(model))
    randomise(model)
    lambdas = [t for n, t in adapter_tensors(model, "default").items() if n.endswith("lora_E")]
    for count, values in enumerate(lambdas):
        values.data[count:] = 0  # the first layer has lost all, the second all but one
    adapted = logits(model)
    save_adapter(model, tmp_path, task_type="SEQ_CLS")
    again, stored = tiny_model("bert"), read_adapter(tmp_path)
    assert isinstance(stored.method, LoRA)
    ranks = [len(t) for n, t in stored.tensors.items() if n.endswith("lora_A")]
    assert sorted(ranks) == sorted(max(1, min(n, 6)) for n in range(len(lambdas)))
    load_adapter(again, stored)
    torch.testing.assert_close(logits(again), adapted, **EXACT)
    there = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    torch.testing.assert_close(logits(there), adapted, **EXACT)


def test_theirs_loads_here_with_its_ranks(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, AdaLoRA(rank=3, initial_rank=6, alpha=5))
    randomise(model)
    theirs = theirs_with(model, "bert", ["query", "value"])
    lambdas = {n: p for n, p in theirs.named_parameters() if ".lora_E." in n}
    pattern = {}
    for count, (name, values) in enumerate(lambdas.items()):
        values.data[count % 7 :] = 0
        key = name.removeprefix("base_model.model.")
        pattern[key] = (values != 0).flatten().tolist()
    expected = logits(theirs)
    theirs.peft_config["default"].rank_pattern = pattern
    theirs.save_pretrained(tmp_path)
    again = tiny_model("bert")
    load_adapter(again, stored := read_adapter(tmp_path))
    assert stored.notes == ()
    torch.testing.assert_close(logits(again), expected, **EXACT)


def test_a_file_of_theirs_without_all_three_is_refused(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, AdaLoRA(rank=3, initial_rank=6, alpha=5))
    theirs_with(model, "bert", ["query", "value"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.endswith("lora_E")))
    save_file(tensors, path)
    with pytest.raises(DeltafitError, match=r"has the tensors lora_A, lora_B; AdaLoRA has A, B"):
        read_adapter(tmp_path)
