"""Adapters on disk: the same logits back, and a file that does not fit changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    disabled,
    load_adapter,
    merge,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from tests.adapters.adapted import anatomy, bits, head_of, logits, randomise, saved
from tests.tiny_models import ARCHITECTURES, TwoTower, tiny_model

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
METHODS: list[Method] = [
    Full(),
    Head(),
    LastBlocks(2),
    LoRA(rank=3, alpha=5.5, scaling="alpha", initialisation="gaussian"),
    LoRA(r".*\.(key|word_embeddings)", rank_pattern=(("key", 2),), dropout=0.1),
    LoRA("all-linear", layers=(-1,), trained_modules=("bert.pooler",)),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_fresh_load_gives_the_same_bits(method: Method, tmp_path: Path) -> None:
    adapted = saved(tmp_path, method)
    stored = read_adapter(tmp_path)
    assert stored.method == method and stored.notes == ()
    model = tiny_model("bert")
    before, start = anatomy(model), logits(model)
    load_adapter(model, stored, "mine")
    assert bits(logits(model)) == bits(adapted)
    assert not any(p.requires_grad for p in model.parameters())
    remove_adapter(model, "mine")
    assert anatomy(model) == before and torch.equal(logits(model), start)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_keeps_its_trained_head(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    adapt(model, LoRA(), head=head_of(model))
    randomise(model)
    save_adapter(model, tmp_path)
    again = tiny_model(architecture)
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(logits(again), logits(model))
    assert set(head_of(tiny_model(architecture))) <= set(read_adapter(tmp_path).replaced)


def test_adapters_with_other_label_counts_load_onto_one_base(tmp_path: Path) -> None:
    outputs = {n: saved(tmp_path / str(n), labels=n) for n in (2, 5, 77)}
    model = tiny_model("bert", num_labels=3)
    for n in outputs:
        load_adapter(model, read_adapter(tmp_path / str(n)), f"labels-{n}")
    for n, output in outputs.items():
        activate(model, f"labels-{n}")
        assert torch.equal(logits(model), output)


def test_a_loaded_adapter_may_go_on_training(tmp_path: Path) -> None:
    saved(tmp_path)
    model = tiny_model("bert")
    load_adapter(model, read_adapter(tmp_path), trainable=True)
    tensors = adapter_tensors(model, "default").values()
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(map(id, tensors))
    with disabled(model):
        pass
    assert all(tensor.requires_grad for tensor in tensors)


def test_any_module_and_any_name(tmp_path: Path) -> None:
    inputs = torch.randn(4, 12), torch.randn(4, 20)
    model = TwoTower()
    adapt(model, LoRA("all-linear"), name="mein Adapter/1", head=("item.2.weight",))
    randomise(model, "mein Adapter/1")
    with pytest.raises(DeltafitError, match="PEFT's format stores whole modules"):
        save_adapter(model, tmp_path, "mein Adapter/1")
    remove_adapter(model, "mein Adapter/1")
    adapt(model, LoRA("all-linear"), name="mein Adapter/1", head=("item.2.weight", "item.2.bias"))
    randomise(model, "mein Adapter/1")
    save_adapter(model, tmp_path, "mein Adapter/1")
    again = TwoTower()
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(again(*inputs), model(*inputs))


def test_an_inactive_adapter_is_saved_and_a_merged_one_refused(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(), name="one", head=head_of(model))
    randomise(model, "one")
    output = logits(model)
    adapt(model, LoRA(), name="two")
    save_adapter(model, tmp_path / "one", "one")
    merge(model)
    save_adapter(model, tmp_path / "again", "one")
    with pytest.raises(DeltafitError, match="'two' is merged; unmerge"):
        save_adapter(model, tmp_path / "two", "two")
    with pytest.raises(DeltafitError, match="no adapter 'three' to save"):
        save_adapter(model, tmp_path / "three", "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "one"]
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "again" / TENSORS).read_bytes()
    fresh = tiny_model("bert")
    load_adapter(fresh, read_adapter(tmp_path / "one"))
    assert torch.equal(logits(fresh), output)


def test_a_folder_may_be_named_in_text(tmp_path: Path) -> None:
    output = saved(str(tmp_path / "adapter"))
    model = tiny_model("bert")
    load_adapter(model, read_adapter(str(tmp_path / "adapter")))
    assert torch.equal(logits(model), output)


def test_the_files_say_what_they_hold(tmp_path: Path) -> None:
    saved(tmp_path)
    with safe_open(tmp_path / TENSORS, "pt") as file:
        content = json.loads(file.metadata()["deltafit"])
        assert set(file.keys()) == {
            "base_model.model.classifier.bias",
            "base_model.model.classifier.weight",
            *(
                f"base_model.model.bert.encoder.layer.{block}.attention.self.query.{tensor}.weight"
                for block in range(3)
                for tensor in ("lora_A", "lora_B")
            ),
        }
    assert content["method"] == json.loads(json.dumps(LoRA(("query",), rank=2).to_dict()))
    assert content["replaced"] == ["classifier.weight", "classifier.bias"]
