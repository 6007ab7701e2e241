"""A truncated adapter: numpy's nearest Δ of each matrix, here and in PEFT."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from deltafit.adapters import (
    StoredAdapter,
    adapt,
    layer_state,
    load_adapter,
    model_adapters,
    read_adapter,
    save_adapter,
)
from deltafit.adapters.low_rank import RankChoice
from deltafit.adapters.truncation import rank_errors, truncated, without
from deltafit.errors import DeltafitError
from deltafit.methods import IA3, AdaLoRA, DoRA, Full, LoRA, Method, VeRA
from tests.adapters.adapted import head_of, logits, randomise, theirs_on_disk
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"rank": 6}),
    ("bert", {"target_modules": ("query", "word_embeddings"), "scaling": "alpha/sqrt(r)"}),
    ("gpt2", {"target_modules": ("c_attn", "wte"), "scaling": "alpha", "alpha": 0.5}),
    ("bert", {"rank_pattern": (("query", 2),), "alpha_pattern": (("value", 3.0),), "rank": 5}),
    ("bert", {"initialisation": "pissa", "rank": 3}),
    ("gpt2", {"layers": (1,), "trained_modules": ("transformer.ln_f",), "dropout": 0.1}),
]


def saved(folder: Path, architecture: str, method: Method) -> torch.Tensor:
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    save_adapter(model, folder, task_type="SEQ_CLS")
    return logits(model)


def deltas(architecture: str, stored: StoredAdapter) -> dict[str, np.ndarray]:
    """Each module's Δ in the layer's view, as the model computes with it."""
    model = tiny_model(architecture)
    load_adapter(model, stored)
    layers = model_adapters(model).adapters["default"].targets
    return {
        name: layer_state(model.get_submodule(name)).deltas("default")["weight"].detach().numpy()
        for name in layers
    }


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_each_matrix_is_numpys_nearest_and_the_errors_were_known(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path / "one", architecture, LoRA(**settings))
    stored = read_adapter(tmp_path / "one")
    before, foretold = deltas(architecture, stored), rank_errors(stored, "here")
    for rank in (1, 2, 4):
        result, losses = truncated(stored, RankChoice(rank), "here")
        after = deltas(architecture, result)
        lost = energy = 0.0
        for name, dense in before.items():
            u, values, v = np.linalg.svd(dense.astype(np.float64), full_matrices=False)
            best = (u[:, :rank] * values[:rank]) @ v[:rank]
            np.testing.assert_allclose(after[name], best, atol=1e-5 * values[0])
            distance = np.linalg.norm(dense - after[name])
            errors = foretold.matrices[name]
            said = errors[rank] if rank < len(errors) else 0.0
            assert said == pytest.approx(distance / np.linalg.norm(dense), abs=1e-5)
            lost, energy = lost + distance**2, energy + np.linalg.norm(dense) ** 2
        assert foretold.overall[rank] == pytest.approx((lost / energy) ** 0.5, abs=1e-5)
        assert sum(loss.lost for loss in losses) / sum(loss.energy for loss in losses) == (
            pytest.approx(foretold.overall[rank] ** 2)
        )
    assert foretold.overall[0] == 1 and foretold.overall[-1] == 0


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
@pytest.mark.parametrize("choice", [RankChoice(2), RankChoice(energy=0.7)], ids=str)
def test_it_loads_here_and_in_peft(
    architecture: str, settings: dict[str, Any], choice: RankChoice, tmp_path: Path
) -> None:
    start = saved(tmp_path / "one", architecture, LoRA(**settings))
    result, losses = truncated(read_adapter(tmp_path / "one"), choice, "here")
    model = tiny_model(architecture)
    load_adapter(model, result)
    assert not torch.allclose(logits(model), start, atol=1e-3)
    save_adapter(model, tmp_path / "two", task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "two").eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    again = tiny_model(architecture)
    load_adapter(again, read_adapter(tmp_path / "two"))
    assert torch.equal(logits(again), logits(model))
    assert all(loss.error**2 <= 0.3 + 1e-9 for loss in losses) or choice.rank is not None


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_at_the_full_rank_not_a_bit_changes(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    start = saved(tmp_path / "one", architecture, LoRA(**settings))
    result, losses = truncated(read_adapter(tmp_path / "one"), RankChoice(99), "here")
    model = tiny_model(architecture)
    load_adapter(model, result)
    assert torch.equal(logits(model), start)
    assert all(loss.lost == 0 for loss in losses)


def test_pefts_own_adapter_and_adalora(tmp_path: Path) -> None:
    theirs = theirs_on_disk(tiny_model("bert"), tmp_path / "theirs", r=4, use_rslora=True)
    saved(tmp_path / "ada", "bert", AdaLoRA(initial_rank=4, rank=2))
    for folder in (tmp_path / "theirs", tmp_path / "ada"):
        result, losses = truncated(read_adapter(folder), RankChoice(3), "here")
        model = tiny_model("bert")
        load_adapter(model, result)
        assert {loss.rank for loss in losses} == {3}
    whole, _ = truncated(read_adapter(tmp_path / "theirs"), RankChoice(4), "here")
    model = tiny_model("bert")
    load_adapter(model, whole)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (DoRA(rank=2), "here holds an adapter of the method dora. .*deltafit extract makes of it"),
        (IA3(), r"method ia3. \(IA\)³ scales whole outputs or inputs .*extract makes of it a LoRA"),
        (VeRA(rank=5), "method vera. VeRA's factors are drawn .*extract makes of it a LoRA"),
        (Full(), "method full. It holds whole parameters"),
    ],
    ids=str,
)
def test_what_is_no_product_is_refused(tmp_path: Path, method: Method, said: str) -> None:
    saved(tmp_path, "bert", method)
    for use in (rank_errors, lambda stored, at: truncated(stored, RankChoice(1), at)):
        with pytest.raises(DeltafitError, match=said):
            use(read_adapter(tmp_path), "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, b: (a.fill_(float("nan")), b), "holds values that are not finite"),
        (lambda a, b: (a, None), "has no pair of factors that fit"),
        (lambda a, b: (a[1:], b), "has no pair of factors that fit"),
    ],
)
def test_what_is_damaged_is_said(tmp_path: Path, change: Any, said: str) -> None:
    saved(tmp_path, "bert", LoRA(("query",), rank=2))
    stored = read_adapter(tmp_path)
    names = [f"bert.encoder.layer.1.attention.self.query.{leaf}" for leaf in ("lora_A", "lora_B")]
    for name, tensor in zip(names, change(*(stored.tensors.pop(n) for n in names)), strict=True):
        if tensor is not None:
            stored.tensors[name] = tensor
    with pytest.raises(DeltafitError, match=f"here is damaged: 'bert.*query' {said}"):
        rank_errors(stored, "here")


def test_without_a_module_its_change_is_zero_and_the_others_stay(tmp_path: Path) -> None:
    saved(tmp_path, "bert", LoRA(rank=3))
    stored = read_adapter(tmp_path)
    before = deltas("bert", stored)
    gone, *kept = before
    after = deltas("bert", without(stored, [gone], "here"))
    assert not after[gone].any() and before[gone].any()
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(before[gone], deltas("bert", stored)[gone])
