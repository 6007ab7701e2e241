"""A LoRA from two models: what was changed by a low rank comes back, the rest is reported."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from deltafit.adapters import (
    adapt,
    layer_state,
    load_adapter,
    merge_and_unload,
    model_adapters,
    read_adapter,
    save_adapter,
)
from deltafit.adapters.extraction import Extraction, extracted
from deltafit.adapters.low_rank import RankChoice
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LoKr, LoRA, Method, Sparse
from tests.adapters.adapted import head_of, logits, randomise
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def merged(architecture: str, method: Method) -> nn.Module:
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    merge_and_unload(model)
    return model


def moved(architecture: str = "bert", seed: int = 3) -> nn.Module:
    """A model with noise on every parameter."""
    model = tiny_model(architecture)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def put_on(tuned: nn.Module, found: Extraction, architecture: str) -> nn.Module:
    """The base with the extracted adapter and the tuned model's head."""
    model = tiny_model(architecture)
    head = {name: tuned.get_parameter(name).detach().clone() for name in head_of(model)}
    load_adapter(model, found.stored(head))
    return model


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_a_merged_adapter_comes_back(architecture: str, kind: type[LoRA], tmp_path: Path) -> None:
    targets = {
        "bert": ("query", "word_embeddings"),
        "gpt2": ("c_attn", "wte"),
        "llama": ("q_proj", "embed_tokens"),
    }[architecture]
    tuned = merged(architecture, kind(targets, rank=3))
    base = tiny_model(architecture)
    # DoRA's Δ has the full rank, which a rank above any here keeps.
    rank = 3 if kind is LoRA else 99
    found = extracted(base, tuned, RankChoice(rank), head=head_of(base), keep_others=False)
    assert {name.rpartition(".")[2] for name in found.changes} == set(targets)
    assert not found.whole and not found.left_out and found.energy_lost < 1e-9
    model = put_on(tuned, found, architecture)
    torch.testing.assert_close(logits(model), logits(tuned), rtol=1e-3, atol=1e-4)
    save_adapter(model, tmp_path, task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("kind", [LoRA, DoRA, LoKr])
def test_kept_whole_each_change_is_the_methods_own(
    architecture: str, kind: type[LoRA], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    adapt(model, kind("all-linear", rank=2), head=head_of(model))
    randomise(model)
    expected = logits(model)
    deltas = {
        name: layer_state(model.get_submodule(name)).deltas("default")["weight"].detach().double()
        for name in model_adapters(model).adapters["default"].targets
    }
    merge_and_unload(model)
    base = tiny_model(architecture)
    found = extracted(base, model, None, head=head_of(base), keep_others=False)
    assert not found.changes and not found.left_out and found.energy_lost == 0
    assert set(found.dense) == set(deltas)
    for name, delta in deltas.items():
        torch.testing.assert_close(found.dense[name].double(), delta, rtol=1e-4, atol=1e-6)
    again = put_on(model, found, architecture)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
    save_adapter(again, tmp_path)
    stored = read_adapter(tmp_path)
    assert isinstance(stored.method, Sparse) and stored.method.density == 1
    other = tiny_model(architecture)
    load_adapter(other, stored)
    assert torch.equal(logits(other), logits(again))


def test_kept_whole_all_matrices_come_back() -> None:
    base, tuned = tiny_model("bert"), moved()
    found = extracted(base, tuned, None, head=head_of(base), keep_others=True)
    model = put_on(tuned, found, "bert")
    merge_and_unload(model)
    for name, parameter in tuned.named_parameters():
        own = model.get_parameter(name)
        if name in found.left_out:
            assert torch.equal(own, base.get_parameter(name)) and name.endswith("bias"), name
        else:
            torch.testing.assert_close(own, parameter, rtol=1e-6, atol=1e-7)
    matrices = [name for name, parameter in base.named_parameters() if parameter.ndim == 2]
    energy = sum(
        float((tuned.get_parameter(n) - base.get_parameter(n)).double().square().sum())
        for n in matrices
        if n not in head_of(base)
    )
    assert sum(loss.energy for loss in found.losses) == pytest.approx(energy)


def test_each_matrix_is_the_nearest_and_the_energy_is_accounted_for() -> None:
    base, tuned = tiny_model("bert"), moved()
    head = head_of(base)
    found = extracted(base, tuned, RankChoice(4), head=head, keep_others=False)
    total = lost = 0.0
    for name, parameter in base.named_parameters():
        if name in head:
            continue
        delta = (tuned.get_parameter(name) - parameter).detach().double()
        total += float(delta.square().sum())
        module = name.rpartition(".")[0]
        if delta.ndim == 2:
            values = torch.linalg.svdvals(delta)
            expected = float(values[4:].square().sum())
            change = found.changes[module].dense()
            embedding = isinstance(base.get_submodule(module), nn.Embedding)
            distance = (delta - (change.T if embedding else change)).square().sum()
            assert float(distance) == pytest.approx(expected, rel=1e-4, abs=1e-9)
        else:
            expected = found.left_out[name]
            assert expected == pytest.approx(float(delta.square().sum()))
        lost += expected
    assert found.energy_lost == pytest.approx(lost / total, rel=1e-5)
    assert {loss.rank for loss in found.losses} == {2, 4}  # two kinds of segments


def test_norms_are_kept_whole_and_biases_of_adapted_layers_are_not(tmp_path: Path) -> None:
    base, tuned = tiny_model("bert"), moved()
    found = extracted(base, tuned, RankChoice(99), head=head_of(base), keep_others=True)
    norms = [name for name, _ in base.named_parameters() if "LayerNorm" in name]
    assert sorted(found.whole) == sorted(norms)
    assert all(name.endswith(".bias") and "LayerNorm" not in name for name in found.left_out)
    model = put_on(tuned, found, "bert")
    save_adapter(model, tmp_path, task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    again = tiny_model("bert")
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(logits(again), logits(model))
    # Without the biases' change it is all there.
    biases = copy.deepcopy(tuned)
    with torch.no_grad():
        for name in found.left_out:
            biases.get_parameter(name).copy_(base.get_parameter(name))
    torch.testing.assert_close(logits(model), logits(biases), rtol=1e-3, atol=1e-4)


def test_what_does_not_belong_together_is_refused() -> None:
    base = tiny_model("bert")

    def extract(tuned: nn.Module) -> Extraction:
        return extracted(base, tuned, RankChoice(2), head=head_of(base), keep_others=False)

    with pytest.raises(DeltafitError, match=r"the base alone has 'bert\."):
        extract(tiny_model("gpt2"))
    with pytest.raises(DeltafitError, match="No matrix differs"):
        extract(tiny_model("bert"))
    larger = tiny_model("bert")
    larger.resize_token_embeddings(70)
    with pytest.raises(DeltafitError, match=r"has shape \[70, 32\] and not \[64, 32\]"):
        extract(larger)
    broken = moved()
    with torch.no_grad():
        broken.get_parameter("bert.embeddings.LayerNorm.weight")[0] = float("nan")
    with pytest.raises(DeltafitError, match="not finite"):
        extract(broken)
