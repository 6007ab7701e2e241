"""Adapter files that do not fit or were not written whole: nothing is changed by them."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    model_adapters,
    read_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError
from deltafit.methods import LastBlocks, LoRA
from tests.adapters.adapted import anatomy, head_of, logits, randomise, saved
from tests.tiny_models import tiny_model

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


# Files that do not fit. Each sentence names the tensor, and the model stays as it was.

LAYER = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
HEAD = "base_model.model.classifier.weight"
Edit = Callable[[dict[str, Tensor]], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda t: t.pop(LAYER), r"layer\.1\.attention\.self\.query\.lora_B' is missing"),
    "missing head": (lambda t: t.pop(HEAD), r"'classifier\.weight' is missing"),
    "missing half": (
        lambda t: [t.pop(key) for key in list(t) if "lora_A" in key],
        r"lora_A' is missing; .* is missing; .* is missing",
    ),
    "extra": (
        lambda t: t.update({LAYER.replace("query", "key"): t[LAYER].clone()}),
        r"self\.key\.lora_B' has no place in the model",
    ),
    "extra head": (
        lambda t: t.update({"base_model.model.score.weight": torch.ones(3, 3)}),
        r"'score\.weight' has no place in the model",
    ),
    "shape": (
        lambda t: t.update({LAYER: torch.ones(31, 2)}),
        r"lora_B' has shape \[31, 2\] and not \[32, 2\]",
    ),
    "rank": (
        lambda t: t.update({LAYER: torch.ones(32, 3)}),
        r"lora_B' has shape \[32, 3\] and not \[32, 2\]",
    ),
    "head's width": (
        lambda t: t.update({HEAD: torch.ones(3, 31)}),
        r"'classifier\.weight' has shape \[3, 31\] and not \[3, 32\]",
    ),
    "half a head": (
        lambda t: t.update({HEAD: torch.ones(4, 32)}),
        r"'classifier\.weight' has shape \[4, 32\] and not \[3, 32\]",
    ),
    "dimensions": (lambda t: t.update({HEAD: torch.ones(3)}), r"'classifier\.weight' has shape"),
}


def edit_tensors(folder: Path, edit: Edit) -> None:
    path = folder / TENSORS
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    edit(tensors)
    save_file(tensors, path, metadata)


def assert_refused(model: nn.Module, folder: Path, said: str) -> None:
    before, output = anatomy(model), logits(model)
    active = model_adapters(model).active
    with pytest.raises(DeltafitError, match=said):
        load_adapter(model, read_adapter(folder))
    assert anatomy(model) == before
    assert model_adapters(model).active == active
    assert torch.equal(logits(model), output)


@pytest.mark.parametrize("second", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("edit", EDITS)
def test_tensors_that_do_not_fit(edit: str, second: bool, tmp_path: Path) -> None:
    change, said = EDITS[edit]
    saved(tmp_path)
    edit_tensors(tmp_path, change)
    model = tiny_model("bert")
    if second:
        adapt(model, LoRA(("value", "query")), name="other", head=head_of(model))
        randomise(model, "other")
    assert_refused(model, tmp_path, said)


def test_another_base_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    assert_refused(tiny_model("gpt2"), tmp_path, "no parameter 'classifier.bias'")
    assert_refused(tiny_model("roberta"), tmp_path, "no parameter 'classifier.bias'")
    saved(tmp_path, LastBlocks(1))
    edit_tensors(
        tmp_path,
        lambda t: t.update(
            {
                "base_model.model.bert.encoder.layer.2.output.dense.weight": torch.ones(16, 48),
                "base_model.model.bert.encoder.layer.2.output.dense.bias": torch.ones(16),
            }
        ),
    )
    said = r"dense\.weight' has shape \[16, 48\] and not \[32, 48\]; .*dense\.bias'"
    assert_refused(tiny_model("bert"), tmp_path, said)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_a_cut_file(kept: float, tmp_path: Path) -> None:
    saved(tmp_path)
    data = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(data[: int(kept * len(data) if kept < 1 else kept)])
    assert_refused(tiny_model("bert"), tmp_path, f"{TENSORS} is damaged or cut short")


@pytest.mark.parametrize(
    "metadata",
    ["{", "[]", "{}", '{"method": 3, "replaced": []}', '{"method": {"method": "lora"}}'],
)
def test_damaged_metadata(metadata: str, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / TENSORS
    save_file(load_file(path), path, {"deltafit": metadata})
    with pytest.raises(DeltafitError, match="does not say what was trained"):
        read_adapter(tmp_path)


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DeltafitError, match=f"holds no {TENSORS}"):
            read_adapter(folder)


# Saving that does not come to its end.


def test_an_empty_tensor_is_never_written(tmp_path: Path) -> None:
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = tiny_model("bert")
    adapt(model, LoRA(), head=head_of(model))
    # as a sharded parameter looks on a process that holds none of it
    adapter_tensors(model, "default")["classifier.weight"].data = torch.empty(0)
    with pytest.raises(DeltafitError, match=r"classifier\.weight' is empty"):
        save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = tiny_model("bert")
    adapt(model, LoRA(), head=head_of(model))
    start = anatomy(model)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DeltafitError, match=f"{TENSORS}: No space left on device"):
            save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert anatomy(model) == start
    load_adapter(model, read_adapter(tmp_path), "old")
    assert torch.equal(logits(model), adapted)


KILLED = """
import os, sys
from pathlib import Path
from torch import nn
from deltafit.adapters import adapt, save_adapter
from deltafit.methods import LoRA
model = nn.Sequential(nn.Linear(4, 4))
adapt(model, LoRA("all-linear", rank=4))
os.replace = lambda *args: os._exit(9)
save_adapter(model, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_old_adapter(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapt(model, LoRA("all-linear", rank=2))
    randomise(model)
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    assert {n: (tmp_path / n).read_bytes() for n in before} == before
    load_adapter(nn.Sequential(nn.Linear(4, 4)), read_adapter(tmp_path))


def test_a_damaged_configuration_is_found_though_only_peft_reads_it(tmp_path):
    model = tiny_model("bert")
    adapt(model, LoRA(), head=("classifier.weight", "classifier.bias"))
    save_adapter(model, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text()[:-20])
    with pytest.raises(DeltafitError, match=r"adapter_config\.json, line"):
        read_adapter(tmp_path)
