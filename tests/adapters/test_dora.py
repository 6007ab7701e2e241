"""DoRA against PEFT's and the paper's formula."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merge,
    read_adapter,
    save_adapter,
    unmerge,
)
from deltafit.methods import DoRA
from tests.adapters.adapted import (
    EXACT,
    gradients_beside_peft,
    head_of,
    logits,
    randomise,
    theirs_on_disk,
)
from tests.adapters.test_law import KINDS, example, make
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"target_modules": "all-linear", "scaling": "alpha/sqrt(r)"}),
    ("bert", {"rank_pattern": (("value", 3),), "alpha_pattern": (("query", 4),)}),
    ("distilbert", {"scaling": "alpha"}),
    ("gpt2", {"target_modules": ("c_attn", "mlp.c_proj")}),
    ("llama", {"target_modules": "all-linear"}),
]


def test_the_formula_of_the_paper() -> None:
    model, x = make("linear", 7, 5), example("linear", 7, (2, 3), 0)
    adapt(model, method := DoRA(("layer",), rank=2, alpha=3))
    randomise(model)
    A, B, m = (t for t in adapter_tensors(model, "default").values())
    turned = model.layer.weight + method.factor * B @ A
    # V's columns in the paper are the rows of torch's weight.
    expected = torch.stack([m[i] * row / row.norm() for i, row in enumerate(turned)])
    torch.testing.assert_close(model(x), functional.linear(x, expected, model.layer.bias))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_the_base(kind: str) -> None:
    model, x = make(kind, 7, 5), example(kind, 7, (2, 3), 0)
    before = model(x)
    adapt(model, DoRA(("layer",), rank=2))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    model(x).sum().backward()
    assert all(t.grad.isfinite().all() for t in adapter_tensors(model, "default").values())  # type: ignore[union-attr]


def test_merged_it_is_the_same_and_unmerged_the_base() -> None:
    model, x = make("linear", 7, 5), example("linear", 7, (2, 3), 0)
    weight = model.layer.weight.clone()
    adapt(model, DoRA(("layer",), rank=2))
    randomise(model)
    adapted = model(x)
    merge(model)
    torch.testing.assert_close(model(x), adapted, rtol=1e-12, atol=1e-12)
    unmerge(model)
    assert torch.equal(model.layer.weight, weight)


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_ours_loads_in_peft_and_comes_back(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    adapt(model, DoRA(**settings), head=head_of(model))
    randomise(model)
    adapted = logits(model)
    save_adapter(model, tmp_path, base_name="somewhere", task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), adapted, **EXACT)
    theirs.save_pretrained(tmp_path / "again")
    again = tiny_model(architecture)
    load_adapter(again, stored := read_adapter(tmp_path / "again"))
    assert isinstance(stored.method, DoRA) and stored.notes == ()
    torch.testing.assert_close(logits(again), adapted, **EXACT)


@pytest.mark.parametrize("targets", [["query", "dense"], ["value", "word_embeddings"]])
def test_theirs_loads_here(targets: list[str], tmp_path: Path) -> None:
    theirs = theirs_on_disk(
        tiny_model("bert"), tmp_path, target_modules=targets, use_dora=True, r=3
    )
    model = tiny_model("bert")
    load_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)
    merge(model)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_gradients_are_pefts(architecture: str, tmp_path: Path) -> None:
    gradients, named = gradients_beside_peft(architecture, DoRA(rank=3), tmp_path)
    for name, gradient in gradients.items():
        if ".lora_" in name:
            torch.testing.assert_close(gradient, named[f"{name}.default.weight"], **EXACT)


def test_dropout_drops_loras_part_alone() -> None:
    model, x = make("linear", 40, 3), example("linear", 40, (2, 3), 0)
    adapt(model, DoRA(("layer",), rank=2, dropout=0.5))
    nn.init.zeros_(adapter_tensors(model, "default")["layer.lora_A"])
    adapter_tensors(model, "default")["layer.lora_magnitude_vector"].data *= 2
    expected = functional.linear(x, 2 * model.layer.weight, model.layer.bias)
    torch.testing.assert_close(model.train()(x), expected)
