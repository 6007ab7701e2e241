"""Whatever was changed since saving is found on loading, and named in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deltafit.errors import DeltafitError
from deltafit.methods import Head
from deltafit.prediction.canaries import SENTENCES
from deltafit.prediction.using import verify
from tests.prediction.test_folder import ADAPTER, CANARIES, FACTS, saved
from tests.training.tiny_runs import LABELS

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    saved(folder)
    return folder / "adapter"


@pytest.fixture
def adapter(saved_once: Path, tmp_path: Path) -> Path:
    """A copy to change; its base is not."""
    shutil.copytree(saved_once, tmp_path / "adapter")
    return tmp_path / "adapter"


def change_json(path: Path, key: str, value: Any) -> None:
    """Set what stands at a dotted key; None deletes it."""
    content = json.loads(path.read_text())
    *outer, last = key.split(".")
    place = content
    for name in outer:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(content))


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
        ("format", None, "has format None"),
        ("label_names", None, "'label_names' must be .* missing"),
        ("label_names", 5, "'label_names' must be a list of different names, and is 5"),
        ("label_names", "abc", "'label_names'"),
        ("label_names", [1, 2, 3], "'label_names'"),
        ("label_names", ["a", "a", "a"], "different"),
        ("label_names", ["a", "", "b"], "'label_names'"),
        ("head", None, r"'head\.kind' must be .*'head\.dropout' must be"),
        ("head", 3, r"'head\.kind'"),
        ("head.kind", "max", r"'head\.kind' must be one of architecture, cls, mean, last"),
        ("head.kind", ["cls"], r"'head\.kind'"),
        ("head.dropout", None, r"'head\.dropout'"),
        ("head.dropout", True, r"'head\.dropout'"),
        ("head_parameters", 5, "'head_parameters'"),
        ("max_length", "x", "'max_length' must be a whole number above 0, and is 'x'"),
        ("max_length", None, "'max_length'"),
        ("max_length", 0, "'max_length'"),
        ("base", {}, r"base\.name"),
        ("base.name", 3, r"base\.name"),
        ("base.tensors", {"weight": [1, 2]}, r"base\.tensors"),
        ("canaries", 3, "'canaries' must be a list of sentences"),
        ("canaries", [], "'canaries'"),
    ],
)
def test_facts_that_cannot_be_are_one_sentence(
    adapter: Path, key: str, value: Any, sentence: str
) -> None:
    change_json(adapter / FACTS, key, value)
    with pytest.raises(DeltafitError, match=sentence) as raised:
        verify(adapter)
    assert str(adapter / FACTS) in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_names", LABELS[::-1]),
        ("label_names", ("good", "bad")),
        ("head.dropout", 0.5),
        ("head_parameters", ["classifier.weight"]),
        ("max_length", 9),
        ("canaries", SENTENCES[::-1]),
        ("base.tensors", {}),
    ],
)
def test_a_fact_that_was_changed_is_named(adapter: Path, key: str, value: Any) -> None:
    change_json(adapter / FACTS, key, value)
    name = key if key == "base.tensors" else key.partition(".")[0]
    with pytest.raises(DeltafitError, match=rf"deltafit\.json: '{name}' changed since .*saved"):
        verify(adapter)


def test_facts_that_decide_nothing_may_change(adapter: Path) -> None:
    change_json(adapter / FACTS, "metrics.test.accuracy", 0.75)
    change_json(adapter / FACTS, "versions.torch", "3.0")
    assert verify(adapter).canary_difference == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_alpha", 160), ("r", 4), ("target_modules", ["key"]), ("modules_to_save", None)],
)
def test_a_changed_configuration_of_pefts_is_refused(adapter: Path, key: str, value: Any) -> None:
    change_json(adapter / CONFIG, key, value)
    with pytest.raises(DeltafitError, match=r"adapter_config\.json is not what was saved"):
        verify(adapter)


def test_a_lost_or_rewritten_configuration_can_no_longer_be_proven(adapter: Path) -> None:
    config = adapter / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text())))  # the same, in other bytes
    with pytest.raises(DeltafitError, match=r"if another tool rewrote it, .* no longer be proven"):
        verify(adapter)
    config.unlink()
    change_json(adapter / FACTS, "max_length", 9)
    with pytest.raises(DeltafitError, match=r"'max_length' changed .*adapter_config\.json is not"):
        verify(adapter)


def test_a_configuration_that_was_never_saved_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, Head())
    (tmp_path / "adapter" / CONFIG).write_text("{}")
    with pytest.raises(DeltafitError, match=r"adapter_config\.json is not what was saved"):
        verify(tmp_path / "adapter")


@pytest.mark.parametrize("metadata", [{}, {"deltafit": "{"}, {"deltafit": "5"}])
def test_canaries_without_their_digests_prove_nothing(
    adapter: Path, metadata: dict[str, str]
) -> None:
    save_file(load_file(adapter / CANARIES), adapter / CANARIES, metadata=metadata)
    with pytest.raises(DeltafitError, match=r"canaries\.safetensors lacks the digests"):
        verify(adapter)


def test_canaries_of_another_shape_do_not_belong_here(adapter: Path) -> None:
    change_tensor(adapter / CANARIES, "logits", lambda t: t[:, :2])
    with pytest.raises(DeltafitError, match="do not belong together"):
        verify(adapter)


def test_code_in_the_base_that_an_adapter_names_is_never_run(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    evil, ran = tmp_path / "evil", tmp_path / "ran"
    shutil.copytree(json.loads((adapter / FACTS).read_text())["base"]["name"], evil)
    (evil / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    change_json(evil / "config.json", "auto_map", {"AutoConfig": "evil.Evil"})
    change_json(evil / "config.json", "model_type", "evil")
    change_json(adapter / FACTS, "base.name", str(evil))
    with pytest.raises(DeltafitError, match="brings code of its own, which deltafit never runs"):
        verify(adapter)
    assert not ran.exists()
