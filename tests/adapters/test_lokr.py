"""LoKr against torch's Kronecker product and against PEFT: logits, gradients and files."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lokr.layer import factorization
from torch.nn import functional

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merge,
    read_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.budget import sized_to
from deltafit.methods import LoKr
from deltafit.methods.lokr import divided
from tests.adapters.adapted import (
    EXACT,
    assert_saved_without_peft,
    gradients_beside_peft,
    head_of,
    logits,
    randomise,
    through_peft,
)
from tests.adapters.test_law import example, make
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONFIG = "adapter_config.json"
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"target_modules": "all-linear", "rank": 3, "alpha": 5.0}),
    ("bert", {"target_modules": "all-linear", "rank": 2, "decompose_factor": 2}),
    ("bert", {"target_modules": ("value",), "rank": 1, "decompose_factor": 32}),
    ("llama", {"target_modules": "all-linear", "layers": (0, -1), "rank": 4}),
]
# Rank and decompose_factor, and the shapes they mean for a layer of 12 inputs and 6 outputs.
SHAPES = [
    (1, -1, {"lokr_w1": (2, 3), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 4)}),
    (2, -1, {"lokr_w1": (2, 3), "lokr_w2": (3, 4)}),
    (2, 2, {"lokr_w1": (2, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 6)}),
]


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
@pytest.mark.parametrize(("rank", "decompose_factor", "shapes"), SHAPES)
def test_it_is_the_kronecker_product(
    kind: str, rank: int, decompose_factor: int, shapes: dict[str, tuple[int, int]]
) -> None:
    model, x = make(kind, 12, 6), example(kind, 12, (2, 5), 0)
    base = model(x)
    method = LoKr(("layer",), rank=rank, alpha=3, decompose_factor=decompose_factor)
    adapt(model, method, seed=0)
    tensors = {n.rpartition(".")[2]: t for n, t in adapter_tensors(model, "default").items()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert not tensors["lokr_w1"].any() and torch.equal(model(x), base)
    assert all(t.abs().min() > 0 for name, t in tensors.items() if name != "lokr_w1")
    randomise(model)
    factors = [tensors[name] for name in shapes if name != "lokr_w1"]
    first, second = tensors["lokr_w1"], factors[0] @ factors[1] if factors[1:] else factors[0]
    # The entry in row (a, b) and column (c, d) is C[a, c]·D[b, d].
    delta = 3 / rank * torch.einsum("ac,bd->abcd", first, second).reshape(6, 12)
    inputs = x if x.is_floating_point() else functional.one_hot(x, 12).double()
    torch.testing.assert_close(model(x), base + inputs @ delta.T, rtol=1e-12, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x), base + inputs @ delta.T, rtol=1e-12, atol=1e-12)


def test_sides_are_divided_as_pefts_are() -> None:
    for side in range(1, 200):
        for decompose_factor in (-1, 1, 2, 3, 4, 5, 7, 8, 16, 100):
            assert divided(side, decompose_factor) == factorization(side, decompose_factor)


def test_the_rank_of_the_change_is_the_product() -> None:
    model = make("linear", 64, 64)
    adapt(model, LoKr(("layer",), rank=3), seed=0)
    randomise(model)
    first, left, right = adapter_tensors(model, "default").values()
    assert torch.linalg.matrix_rank(torch.kron(first, left @ right)) == 8 * 3


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_ours_loads_in_peft_and_comes_back(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    through_peft(architecture, LoKr(**settings), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "dense"], "r": 3, "alpha": 2, "rank_dropout": 0.1},
        {"target_modules": ["value"], "r": 5, "decompose_factor": 2, "init_weights": "lycoris"},
        # So large a rank that neither matrix is in two factors.
        {"target_modules": ["query"], "r": 9, "decompose_both": True, "rank_dropout_scale": True},
    ],
)
def test_theirs_loads_here(settings: dict[str, Any], tmp_path: Path) -> None:
    config = peft.LoKrConfig(task_type="SEQ_CLS", **settings)
    theirs = peft.get_peft_model(tiny_model("bert"), config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path)
    model = tiny_model("bert")
    load_adapter(model, stored := read_adapter(tmp_path))
    assert stored.notes == (), stored.notes
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)
    assert not torch.allclose(logits(model), logits(tiny_model("bert")), atol=1e-2)


@pytest.mark.parametrize("rank", [2, 5])  # in two factors, and whole
def test_gradients_are_pefts(rank: int, tmp_path: Path) -> None:
    gradients, named = gradients_beside_peft("bert", LoKr("all-linear", rank=rank), tmp_path)
    expected = {n.replace(".default", ""): g for n, g in named.items() if "lokr_" in n}
    found = {n: gradient for n, gradient in gradients.items() if "lokr_" in n}
    assert set(found) == set(expected) and len(found) > 8
    for name, gradient in found.items():
        largest = float(expected[name].abs().max())  # sums in another order
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_layers_that_peft_lacks_are_saved_for_deltafit_alone(
    architecture: str, tmp_path: Path
) -> None:
    targets = ("c_attn",) if architecture == "gpt2" else ("word_embeddings",)
    assert_saved_without_peft(architecture, LoKr(targets, rank=2), tmp_path)


@pytest.mark.parametrize(
    ("made", "changed", "said"),
    [
        ({}, {"rank_pattern": {"query": 2}}, "rank_pattern of a LoKr adapter have no place here"),
        ({}, {"r": 0}, "rank must be a whole number"),
        ({}, {"decompose_factor": 0}, "decompose_factor .* must be a whole number"),
        ({"decompose_both": True}, {}, "lokr_w1_.' belongs to a variant of LoKr"),
    ],
)
def test_what_has_no_place_here_is_refused(
    made: dict[str, Any], changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = peft.LoKrConfig(task_type="SEQ_CLS", target_modules=["query"], r=1, **made)
    peft.get_peft_model(tiny_model("bert"), config).save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DeltafitError, match=said):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"rank": 1.5}, {"alpha": 0}, {"decompose_factor": 0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(settings))}.* must be"):
        LoKr(**settings)


@pytest.mark.parametrize(("budget", "rank"), [(200, 1), (300, 2), (400, 3), (10**7, 4)])
def test_a_budget_beyond_its_size_is_no_endless_search(budget: int, rank: int) -> None:
    """Of 6 layers of 32 × 32, in 4 × 4 and 8 × 8: 16 values and 16 a rank, and 80 from 4 on."""
    model = tiny_model("bert").to("meta")
    (sized,) = sized_to(budget, [LoKr()], model, head_of(model))
    assert sized.method == LoKr(rank=rank)
    assert f"rank={rank} comes nearest" in sized.note
