"""PEFT's LayerNorm tuning as oracle: files that load both ways, the same logits and gradients."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deltafit.adapters import adapt, adapter_tensors, load_adapter, read_adapter, save_adapter
from deltafit.errors import DeltafitError
from deltafit.files import write_json_atomically, write_tensors_atomically
from deltafit.methods import Modules, Norms
from tests.adapters.adapted import head_of, logits, randomise
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXACT = {"rtol": 1e-5, "atol": 1e-5}
ARCHITECTURES = ("bert", "deberta-v2", "gpt2", "llama", "qwen3", "modernbert")


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model(**tiny_inputs(model)).logits.square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ours_loads_in_peft_and_comes_back(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    adapt(model, Norms(), head=head_of(model))
    randomise(model)
    adapted = logits(model)
    save_adapter(model, tmp_path, base_name="somewhere", task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(
        tiny_model(architecture), tmp_path, is_trainable=True
    ).eval()
    torch.testing.assert_close(logits(theirs), adapted, **EXACT)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    own = peft.get_peft_model_state_dict(theirs)
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in stored.items()}
    # The same gradients from there.
    names = {
        name.replace(".ln_tuning_layers.default", "")
        .replace(".modules_to_save.default", "")
        .removeprefix("base_model.model."): gradient
        for name, gradient in gradients(theirs).items()
    }
    expected = gradients(model)
    assert names.keys() == expected.keys() == adapter_tensors(model, "default").keys()
    for name, gradient in names.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
    # Ours again, and through PEFT's own writing, which drops our metadata.
    theirs.save_pretrained(tmp_path / "again")
    for folder, kind in ((tmp_path, Norms), (tmp_path / "again", Modules)):
        other = tiny_model(architecture)
        read = read_adapter(folder)
        assert type(read.method) is kind
        load_adapter(other, read)
        torch.testing.assert_close(logits(other), adapted, **EXACT)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gpt2", {}),
        ("bert", {"target_modules": ["output.LayerNorm"]}),
        ("bert", {"target_modules": ["query", "LayerNorm"]}),  # any layer may be copied
    ],
    ids=str,
)
def test_theirs_loads_here(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = peft.LNTuningConfig(task_type="SEQ_CLS", **settings)
    wrapped = peft.get_peft_model(tiny_model(architecture), config).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path)
    model = tiny_model(architecture)
    load_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(wrapped), **EXACT)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert sum(t.numel() for t in adapter_tensors(model, "default").values()) == trained


def test_a_folder_without_norms_is_refused(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "adapter_config.json", {"peft_type": "LN_TUNING"})
    write_tensors_atomically(
        tmp_path / "adapter_model.safetensors", {"base_model.model.x.weight": torch.ones(2)}, {}
    )
    with pytest.raises(DeltafitError, match="holds no tensor of LayerNorm tuning"):
        read_adapter(tmp_path)
