"""Methods under one budget: counts against adapted models, the nearest size, what has none."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deltafit.adapters import adapt, trained_tensors, trained_values
from deltafit.errors import UsageError
from deltafit.experiments.budget import sized_to
from deltafit.experiments.comparison import compare
from deltafit.methods import (
    AdaLoRA,
    Bottleneck,
    DoRA,
    Head,
    LastBlocks,
    LoRA,
    Method,
    Prefix,
    Prompt,
    Sparse,
    parse_method,
)
from deltafit.training.settings import TrainingSettings
from tests.adapters.adapted import head_of
from tests.tiny_models import HIDDEN, tiny_model
from tests.training.tiny_runs import save_model, tables

METHODS = (
    "lora", "lora:freeze_a=true,target_modules=all-linear", "lora:rank=3,initialisation=pissa",
    "lora:target_modules=word_embeddings", "dora:target_modules=query+word_embeddings",
    "adalora:initial_rank=5,rank=2", "head", "last-block", "full",
    "bottleneck:size=5", "bottleneck:variant=pfeiffer,layers=-1", "prefix:count=3",
    "prompt:count=7",
    "lora:rank=4,rank_pattern=query>2,trained_modules=bert.pooler",
)  # fmt: skip


def on_meta(model: nn.Module) -> nn.Module:
    return model.to("meta")


@pytest.mark.parametrize("text", METHODS)
def test_counts_are_those_of_the_adapted_model(text: str) -> None:
    method, model = parse_method(text), tiny_model("bert")
    head = head_of(model)
    adapt(model, method, head=head)
    own = {n: t for n, t in trained_tensors(model, "default").items() if n not in head}
    expected = sum(tensor.numel() for tensor in own.values())
    assert trained_values(on_meta(tiny_model("bert")), method, head=head) == expected


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(budget=st.integers(400, 100_000))
@pytest.mark.parametrize(
    "method",
    [
        *(LoRA(), DoRA("all-linear"), AdaLoRA(initial_rank=6, rank=2)),
        *(Bottleneck(), Prefix()),
    ],
)
def test_no_other_size_is_nearer(method: Method, budget: int) -> None:
    model = on_meta(tiny_model("bert"))
    head = head_of(model)
    least = trained_values(model, method.with_size(1), head=head)
    if least > 2 * budget:
        with pytest.raises(UsageError, match="more than twice the budget"):
            sized_to(budget, [method], model, head)
        return
    sized = sized_to(budget, [method], model, head)[0].method
    size = getattr(sized, str(method.size_setting))

    def distance(of: int) -> int:
        return abs(trained_values(model, method.with_size(of), head=head) - budget)

    assert distance(size) <= distance(size + 1)
    assert size == 1 or distance(size) <= distance(size - 1)


def test_virtual_tokens_leave_texts_half_of_the_positions() -> None:
    model = on_meta(tiny_model("bert"))
    head, half = head_of(model), model.config.max_position_embeddings // 2
    for budget, count, words in (
        (5 * HIDDEN, 5, "count=5 comes nearest"),
        (half * HIDDEN, half, f"count={half} comes nearest"),
        (100_000, half, f"count={half} leaves texts half of the positions, so it stays below"),
    ):
        (sized,) = sized_to(budget, [Prompt()], model, head)
        assert sized.method == Prompt(count=count) and sized.note.startswith(words)
    rotary = on_meta(tiny_model("llama"))
    (sized,) = sized_to(100 * HIDDEN, [Prompt()], rotary, head_of(rotary))
    assert sized.method == Prompt(count=100)


def test_the_density_of_a_sparse_update_is_its_size() -> None:
    model = on_meta(tiny_model("bert"))
    head, largest = head_of(model), trained_values(model, Sparse(density=1.0), head=())
    for budget in (40, 777, 2000, largest // 2):
        ((sized),) = sized_to(budget, [Sparse(mask="magnitude")], model, head)
        assert isinstance(sized.method, Sparse) and sized.method.mask == "magnitude"
        assert abs(trained_values(model, sized.method, head=head) - budget) <= 12
        assert f"density={sized.method.density} comes nearest" in sized.note
    ((all_of_it),) = sized_to(50 * largest, [Sparse()], model, head)
    assert trained_values(model, all_of_it.method, head=head) == largest


def test_adaloras_final_rank_keeps_its_share() -> None:
    assert AdaLoRA(initial_rank=12, rank=8).with_size(30) == AdaLoRA(initial_rank=30, rank=20)


def test_what_has_no_size_keeps_its_own_and_says_so() -> None:
    model = on_meta(tiny_model("bert"))
    found = sized_to(1000, [Head(), LastBlocks()], model, head_of(model))
    assert [each.method for each in found] == [Head(), LastBlocks()]
    assert all("has no size to choose" in each.note for each in found)
    assert "trains 0 parameters besides the head" in found[0].note


@pytest.mark.slow
def test_a_comparison_under_a_budget(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = save_model(tmp_path / "model")
    result = compare(
        model, tables(tmp_path), tmp_path / "out",
        methods=["lora:rank=1", "dora:rank=5", "head"], budget=900,
        settings=TrainingSettings(epochs=1, batch_size=16, max_length=12),
    )  # fmt: skip
    rows = {row["name"]: row for row in result.rows if row["kind"] == "run"}
    assert {"lora:rank=2", "dora:rank=2", "head"} >= set(rows) and len(rows) == 3
    lora, head = rows["lora:rank=2"], rows["head"]
    assert lora["trainable"] - head["trainable"] == 2 * 2 * 3 * (32 + 32)
    assert (
        lora["notes"][0]
        == "rank=2 comes nearest to the budget of 900: 768 parameters besides the head"
    )
    assert head["notes"][0].startswith("has no size to choose")
