"""What PEFT writes and cannot be loaded here: refused in a sentence, or told in a note."""

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltafit.adapters import (
    adapt,
    load_adapter,
    model_adapters,
    read_adapter,
)
from deltafit.errors import DeltafitError
from deltafit.methods import Full
from tests.adapters.adapted import anatomy, logits, randomise, theirs_on_disk
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (peft.LoraConfig(bias="lora_only"), "bias is 'lora_only'"),
        (peft.LoraConfig(lora_bias=True), "sets lora_bias to True"),
        (peft.LoraConfig(init_lora_weights="pissa", r=4), "'pissa', which changed the base"),
        (peft.LoraConfig(init_lora_weights="olora", r=4), "'olora', which changed the base"),
        (peft.LoraConfig(trainable_token_indices=[1, 2]), "sets trainable_token_indices"),
        (peft.LoraConfig(target_parameters=["pooler.dense.weight"]), "sets target_parameters"),
        (peft.HRAConfig(target_modules=["query"]), "peft_type is 'HRA'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pefts_other_kinds_are_refused(config: Any, said: str, tmp_path: Path) -> None:
    config.task_type = "SEQ_CLS"
    peft.get_peft_model(tiny_model("bert"), config).save_pretrained(tmp_path)
    with pytest.raises(DeltafitError, match=re.escape(said)):
        read_adapter(tmp_path)


def edited(folder: Path, **changes: Any) -> Path:
    """PEFT's adapter on BERT with its configuration changed by hand."""
    theirs_on_disk(tiny_model("bert"), folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_unknown_settings_are_told(tmp_path: Path) -> None:
    stored = read_adapter(edited(tmp_path, from_the_future=[1], also_new=None, known_off=False))
    assert stored.notes == (
        "adapter_config.json sets 'from_the_future' to [1], which is not known here and was "
        "ignored.",
    )


def test_tensors_of_a_variant_are_refused_even_if_the_configuration_hides_it(
    tmp_path: Path,
) -> None:
    dora = peft.get_peft_model(
        tiny_model("bert"), peft.LoraConfig(task_type="SEQ_CLS", use_dora=True)
    )
    dora.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": False}))
    with pytest.raises(DeltafitError, match=r"lora_magnitude_vector.*a variant of LoRA"):
        read_adapter(tmp_path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    edited(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(DeltafitError, match=r"adapter_model\.bin is a pickle"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_broken_configuration(text: str, tmp_path: Path) -> None:
    edited(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(DeltafitError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": None}, "r is None and not a whole number of at least 1"),
        ({"r": "eight"}, "r is 'eight' and not"),
        ({"r": True}, "r is True and not"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x' and not a finite number above 0"),
        ({"lora_alpha": None}, "lora_alpha is None and not"),
        ({"lora_alpha": 0}, "lora_alpha is 0 and not"),
        ({"lora_alpha": -4}, "lora_alpha is -4 and not"),
        ({"lora_dropout": None}, "lora_dropout is None and not a number from 0 to below 1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0 and not"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern has the key '(', which is no regular"),
        ({"alpha_pattern": {"q": "x"}}, "alpha_pattern of 'q' is 'x' and not a finite number"),
        ({"alpha_pattern": "q"}, "alpha_pattern is 'q' and not an object of names"),
        ({"r": 0, "lora_alpha": 0}, "r is 0 and not a whole number of at least 1; lora_alpha is 0"),
    ],
    ids=str,
)
def test_settings_that_are_no_numbers(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    edited(tmp_path, **changes)
    with pytest.raises(DeltafitError, match=re.escape(f"adapter_config.json: {said}")):
        read_adapter(tmp_path)


def test_tensors_that_are_no_matrices_and_files_without_any(tmp_path: Path) -> None:
    edited(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_B" in key)
    save_file({**tensors, key: torch.ones(3)}, path)
    with pytest.raises(DeltafitError, match=r"lora_B' has shape \[3\]; only adapters of linear"):
        read_adapter(tmp_path)
    save_file({key: t for key, t in tensors.items() if "lora_" not in key}, path)
    with pytest.raises(DeltafitError, match="holds no tensor of LoRA"):
        read_adapter(tmp_path)


def test_running_statistics_are_not_loaded(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))

    theirs_on_disk(model(), tmp_path, None, target_modules=["0"], modules_to_save=["1"])
    with pytest.raises(DeltafitError, match=r"'1\.num_batches_tracked' is a buffer"):
        load_adapter(model(), read_adapter(tmp_path))


def test_a_stored_embedding_must_be_the_bases_own(tmp_path: Path) -> None:
    theirs_on_disk(tiny_model("llama"), tmp_path, target_modules=["embed_tokens"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    for changed in (tensors[key] + 1e-3, torch.cat([tensors[key]] * 2)):
        save_file({**tensors, key: changed}, path)
        model = tiny_model("llama")
        before = anatomy(model)
        with pytest.raises(DeltafitError, match=r"another 'model\.embed_tokens\.weight'"):
            load_adapter(model, read_adapter(tmp_path))
        assert anatomy(model) == before and not model_adapters(model).adapters


def test_a_stored_embedding_is_compared_with_the_base_and_no_adapter(tmp_path: Path) -> None:
    theirs = theirs_on_disk(tiny_model("llama"), tmp_path, target_modules=["embed_tokens"])
    model = tiny_model("llama")
    adapt(model, Full(), name="full")
    randomise(model, "full")
    load_adapter(model, read_adapter(tmp_path), "theirs")
    torch.testing.assert_close(logits(model), logits(theirs))


def test_a_half_precision_adapter_on_bases_of_every_precision(tmp_path: Path) -> None:
    theirs = theirs_on_disk(tiny_model("bert"), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(path).items()}, path)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = tiny_model("bert").to(dtype)
        load_adapter(model, read_adapter(tmp_path))
        torch.testing.assert_close(
            logits(model).float(), logits(theirs).float(), rtol=0.05, atol=0.15
        )
