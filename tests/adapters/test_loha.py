"""LoHa against the papers' formula and against PEFT: logits, gradients and files."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merge,
    read_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import LoHa
from deltafit.methods.loha import NAMES
from tests.adapters.adapted import (
    assert_saved_without_peft,
    gradients_beside_peft,
    logits,
    randomise,
    through_peft,
)
from tests.adapters.test_law import example, make
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXACT = {"rtol": 1e-5, "atol": 1e-5}
CONFIG = "adapter_config.json"
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"target_modules": "all-linear", "rank": 3, "alpha": 5.0}),
    ("llama", {"target_modules": "all-linear", "layers": (0, -1), "rank": 4}),
]


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
def test_the_formula_of_the_paper(kind: str) -> None:
    model, x = make(kind, 7, 5), example(kind, 7, (2, 3), 0)
    base = model(x)
    adapt(model, LoHa(("layer",), rank=3, alpha=6), seed=0)
    tensors = adapter_tensors(model, "default")
    b1, a1, b2, a2 = (tensors[f"layer.{name}"] for name in NAMES)
    assert [tuple(t.shape) for t in (b1, a1, b2, a2)] == [(5, 3), (3, 7)] * 2
    assert not a2.any() and all(t.abs().min() > 0 for t in (b1, a1, b2))
    assert torch.equal(model(x), base)
    randomise(model)
    delta = 2 * (b1 @ a1) * (b2 @ a2)  # ∘ by elements; s = 6/3
    inputs = x if x.is_floating_point() else functional.one_hot(x, 7).double()
    torch.testing.assert_close(model(x), base + inputs @ delta.T, rtol=1e-12, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x), base + inputs @ delta.T, rtol=1e-12, atol=1e-12)


def test_the_rank_of_the_change_is_the_square() -> None:
    model = make("linear", 30, 30)
    adapt(model, LoHa(("layer",), rank=3), seed=0)
    randomise(model)
    b1, a1, b2, a2 = (adapter_tensors(model, "default")[f"layer.{name}"] for name in NAMES)
    assert torch.linalg.matrix_rank((b1 @ a1) * (b2 @ a2)) == 9


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_ours_loads_in_peft_and_comes_back(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    through_peft(architecture, LoHa(**settings), tmp_path)


@pytest.mark.parametrize("targets", [["query", "dense"], ["value"]])
def test_theirs_loads_here(targets: list[str], tmp_path: Path) -> None:
    config = peft.LoHaConfig(
        task_type="SEQ_CLS", target_modules=targets, r=5, alpha=3, rank_dropout=0.1,
        init_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(tiny_model("bert"), config).eval()
    theirs.save_pretrained(tmp_path)
    model = tiny_model("bert")
    load_adapter(model, stored := read_adapter(tmp_path))
    assert stored.notes == () and (stored.method.rank, stored.method.alpha) == (5, 3)
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)


def test_gradients_are_pefts(tmp_path: Path) -> None:
    gradients, named = gradients_beside_peft("bert", LoHa("all-linear", rank=3), tmp_path)
    expected = {n.replace(".default", ""): g for n, g in named.items() if "hada_" in n}
    found = {n: gradient for n, gradient in gradients.items() if "hada_" in n}
    assert set(found) == set(expected) and len(found) > 8
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_layers_that_peft_lacks_are_saved_for_deltafit_alone(
    architecture: str, tmp_path: Path
) -> None:
    targets = ("c_attn",) if architecture == "gpt2" else ("word_embeddings",)
    assert_saved_without_peft(architecture, LoHa(targets, rank=2), tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rank_pattern": {"query": 2}}, "rank_pattern of a LoHa adapter have no place here"),
        ({"r": 0}, "rank must be a whole number"),
        ({"alpha": "much"}, "alpha must be a finite number"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = peft.LoHaConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    peft.get_peft_model(tiny_model("bert"), config).save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DeltafitError, match=said):
        read_adapter(tmp_path)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 1.5}, {"alpha": 0}, {"alpha": True}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(settings))} must be"):
        LoHa(**settings)
