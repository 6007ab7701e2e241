"""LoRA started from the weight, with two rates, with A frozen: what changes and what does not."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merge,
    rate_factors,
    read_adapter,
    save_adapter,
    trained_tensors,
    unmerge,
)
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LoRA
from tests.adapters.adapted import head_of, logits, randomise
from tests.adapters.test_law import KINDS, example, make
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FROM_WEIGHT = ("pissa", "olora")


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {n.rpartition(".")[2]: t for n, t in adapter_tensors(model, "default").items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("initialisation", FROM_WEIGHT)
@pytest.mark.parametrize("method", [LoRA, DoRA])
def test_started_from_the_weight_nothing_changes_at_first(
    kind: str, initialisation: str, method: type[LoRA]
) -> None:
    model, x = make(kind, 9, 6), example(kind, 9, (2, 4), 0)
    before, weight = model(x), model.layer.weight.clone()
    adapt(model, method(("layer",), rank=3, initialisation=initialisation))  # type: ignore[arg-type]
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.layer.weight, weight)  # the base stays the base


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha", "alpha/sqrt(r)"])
def test_pissa_starts_with_the_largest_singular_values(scaling: Any) -> None:
    model = make("linear", 9, 6)
    method = LoRA(("layer",), rank=2, alpha=3, initialisation="pissa", scaling=scaling)
    adapt(model, method)
    own = tensors_of(model)
    started = method.factor * own["lora_B"] @ own["lora_A"]
    weight = model.layer.weight
    singular = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(started)[:2], singular[:2], rtol=1e-5, atol=0)
    # No matrix of rank 2 is nearer (Eckart and Young).
    rest = torch.linalg.matrix_norm(weight - started)
    torch.testing.assert_close(rest, singular[2:].norm(), rtol=1e-5, atol=0)


def test_olora_starts_with_an_orthonormal_b_and_the_first_columns() -> None:
    model = make("linear", 9, 6)
    adapt(model, method := LoRA(("layer",), rank=3, alpha=6, initialisation="olora"))
    own = tensors_of(model)
    gram = own["lora_B"].T @ own["lora_B"] * method.factor  # 1/√s stands in each factor
    torch.testing.assert_close(gram, torch.eye(3).double(), rtol=0, atol=1e-6)
    started = method.factor * own["lora_B"] @ own["lora_A"]
    torch.testing.assert_close(started[:, :3], model.layer.weight[:, :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonal_is_orthonormal_along_the_rank(kind: str) -> None:
    model = make(kind, 9, 6)
    adapt(model, LoRA(("layer",), rank=4, initialisation="orthogonal"))
    own = tensors_of(model)
    random = own["lora_B"].T if "embedding" in kind else own["lora_A"]
    torch.testing.assert_close(random @ random.T, torch.eye(4).double(), rtol=0, atol=1e-12)
    assert not own["lora_A" if "embedding" in kind else "lora_B"].any()


@pytest.mark.parametrize("initialisation", FROM_WEIGHT)
@pytest.mark.parametrize("scaling", ["alpha/r", "alpha", "alpha/sqrt(r)"])
@pytest.mark.parametrize("method", [LoRA, DoRA])
def test_it_is_saved_as_plain_lora_that_peft_reads(
    initialisation: Any, scaling: Any, method: type[LoRA], tmp_path: Path
) -> None:
    model = tiny_model("bert")
    settings = {"rank": 3, "alpha": 5.0, "rank_pattern": (("value", 2),), "scaling": scaling}
    adapt(model, method(initialisation=initialisation, **settings), head=head_of(model))
    start = logits(model)
    for name, tensor in trained_tensors(model, "default").items():
        if "_start" not in name:
            tensor.data += 0.2 * torch.randn(
                tensor.shape, generator=torch.Generator().manual_seed(1)
            )
    adapted = logits(model)
    assert not torch.allclose(adapted, start, atol=1e-2)
    save_adapter(model, tmp_path, task_type="SEQ_CLS")
    again = tiny_model("bert")
    load_adapter(again, stored := read_adapter(tmp_path))
    kept = stored.method
    assert isinstance(kept, method) and kept.initialisation == "kaiming" and kept.rank == 6
    torch.testing.assert_close(logits(again), adapted, rtol=1e-5, atol=1e-5)
    there = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    torch.testing.assert_close(logits(there), adapted, rtol=1e-5, atol=1e-5)


def test_what_started_it_is_not_trained() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(rank=2, initialisation="pissa"), head=head_of(model))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A." in n for n in trained) and not any("_start" in n for n in trained)
    assert not any("_start" in n for n in trained_tensors(model, "default"))


def test_merging_and_unmerging_what_started_from_the_weight() -> None:
    model, x = make("linear", 9, 6), example("linear", 9, (2, 4), 0)
    adapt(model, LoRA(("layer",), rank=2, initialisation="pissa"))
    randomise(model)
    adapted, weight = model(x), model.layer.weight.clone()
    merge(model)
    torch.testing.assert_close(model(x), adapted, rtol=1e-12, atol=1e-12)
    unmerge(model)
    assert torch.equal(model.layer.weight, weight)


@pytest.mark.parametrize("initialisation", FROM_WEIGHT)
def test_a_rank_beyond_the_weight_is_refused(initialisation: Any) -> None:
    with pytest.raises(DeltafitError, match=r"a rank of at most 6 there.* it is 7"):
        adapt(make("linear", 9, 6), LoRA(("layer",), rank=7, initialisation=initialisation))


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_freezing_a_trains_the_factor_that_starts_at_zero(kind: str) -> None:
    model = make(kind, 9, 6)
    adapt(model, LoRA(("layer",), rank=2, freeze_a=True))
    trained = [n.rpartition(".")[2] for n in trained_tensors(model, "default")]
    assert trained == (["lora_A"] if kind == "embedding" else ["lora_B"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"layer.{trained[0]}.default"
    }


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_the_ratio_is_of_the_factor_that_starts_at_zero(kind: str) -> None:
    model = make(kind, 9, 6)
    adapt(model, LoRA(("layer",), rank=2, learning_rate_ratio=16))
    own = tensors_of(model)
    faster = own["lora_A" if kind == "embedding" else "lora_B"]
    assert rate_factors(model) == {faster: 16}
