"""Whatever was changed since saving is found on loading, and named in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deltafit.errors import DeltafitError
from deltafit.prediction.using import verify
from tests.prediction.test_folder import ADAPTER, CANARIES, FACTS, saved


def change_tensor(path: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Change the first tensor whose name holds ``part``; return its name."""
    tensors = load_file(path)
    name = next(name for name in tensors if part in name)
    tensors[name] = change(tensors[name]).contiguous()
    metadata = _metadata(path)
    save_file(tensors, path, metadata=metadata)
    return name


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def test_another_base_names_the_first_tensor_that_differs(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    name = change_tensor(weights, "layer.1.attention.self.key.weight", lambda t: t + 0.01)
    with pytest.raises(DeltafitError, match=rf"another base .*'bert\.{name}' are others"):
        verify(tmp_path / "adapter")


def test_a_base_in_half_precision_is_another_base(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    halved = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(halved, weights, metadata={"format": "pt"})
    with pytest.raises(DeltafitError, match="embeddings"):
        verify(tmp_path / "adapter")


def test_one_changed_value_between_the_samples_is_left_to_the_canaries(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 1:] += 3.0  # the row of <unk>, which every canary holds
        return tensor

    change_tensor(weights, "word_embeddings", change)
    with pytest.raises(DeltafitError, match=r"another base|does not give the logits"):
        verify(tmp_path / "adapter")


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "classifier.weight", "classifier.bias"])
def test_a_changed_adapter_or_head_fails_the_canaries(tmp_path: Path, part: str) -> None:
    saved(tmp_path)
    change_tensor(tmp_path / "adapter" / ADAPTER, part, lambda t: t + 0.5)
    with pytest.raises(DeltafitError, match="does not give the logits the adapter was saved with"):
        verify(tmp_path / "adapter")


def test_a_head_that_is_not_a_number_fails_the_canaries(tmp_path: Path) -> None:
    saved(tmp_path)
    change_tensor(tmp_path / "adapter" / ADAPTER, "classifier.bias", lambda t: t * float("nan"))
    with pytest.raises(DeltafitError, match="nan"):
        verify(tmp_path / "adapter")


def without_tensor(path: Path, part: str) -> None:
    metadata = _metadata(path)
    kept = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    save_file(kept, path, metadata=metadata)


@pytest.mark.parametrize("part", ["lora_B", "classifier.weight"])
def test_a_lost_tensor_is_named(tmp_path: Path, part: str) -> None:
    saved(tmp_path)
    without_tensor(tmp_path / "adapter" / ADAPTER, part)
    with pytest.raises(DeltafitError, match=part):
        verify(tmp_path / "adapter")


@pytest.mark.parametrize("file", [ADAPTER, CANARIES, FACTS])
@pytest.mark.parametrize("damage", ["cut short", "gone", "empty"])
def test_damaged_files_are_one_sentence(tmp_path: Path, file: str, damage: str) -> None:
    saved(tmp_path)
    path = tmp_path / "adapter" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    with pytest.raises(DeltafitError, match=file if damage != "gone" else "adapter"):
        verify(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("format", 99, "has format 99"),
        ("label_names", None, "label_names"),
        ("head", None, "head"),
        ("head", {"kind": "max", "dropout": 0.0}, "head must be one of"),
        ("head", {"kind": "mean"}, r"head\.dropout"),
        ("base", {}, r"base\.name"),
        ("label_names", ["a", "b"], "do not belong together"),
    ],
)
def test_facts_that_cannot_be_are_one_sentence(
    tmp_path: Path, key: str, value: Any, sentence: str
) -> None:
    saved(tmp_path)
    path = tmp_path / "adapter" / FACTS
    facts = json.loads(path.read_text())
    if value is None:
        del facts[key]
    else:
        facts[key] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(DeltafitError, match=sentence):
        verify(tmp_path / "adapter")
