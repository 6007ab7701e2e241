"""One pass of several adapters gives each row what it gets with its own adapter alone."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from deltafit.engine import mixed, packed
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.engine.mixes import (
    LENGTHS,
    METHODS,
    SEGMENTS,
    alone,
    assert_each_has_its_own,
    with_adapters,
)
from tests.engine.ragged import classifier, in_training, ragged
from tests.tiny_models import HIDDEN, tiny_model

ARCHITECTURES = (
    "bert",
    "roberta",
    "distilbert",
    "gpt2",
    "llama",
    "opt",
    "modernbert",
    "gemma3_text",
    "t5",
    "umt5",
)


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_row_goes_through_its_own_adapter(architecture: str, run_packed: bool) -> None:
    model = with_adapters(classifier(architecture).double())
    batch = ragged(LENGTHS)
    logits, _ = alone(model, batch, SEGMENTS)
    swapped, _ = alone(model, batch, [("two", 2), *SEGMENTS[1:]])
    assert not torch.allclose(logits[0], swapped[0], atol=1e-2)  # the adapters differ
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, batch)


class _Products(TorchFunctionMode):
    """Keeps what is multiplied by one weight."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.shapes = weight, []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function is functional.linear and args[1] is self.weight:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("run_packed", [False, True])
def test_the_base_is_computed_once(run_packed: bool) -> None:
    model, batch = with_adapters(tiny_model("bert")), ragged(LENGTHS)
    query = model.bert.encoder.layer[1].attention.self.query
    products = _Products(query.weight)
    with packed(model) if run_packed else nullcontext(), mixed(model, SEGMENTS), products:
        model(**batch)
    lead = (sum(LENGTHS),) if run_packed else (len(LENGTHS), max(LENGTHS))
    assert products.shapes == [(*lead, HIDDEN)]


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*METHODS, None]), st.lists(st.integers(1, 5), min_size=1)),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_any_segments(drawn: list[tuple[str | None, list[int]]], run_packed: bool) -> None:
    model = _model()
    batch = ragged([length for _, lengths in drawn for length in lengths])
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, batch, [(adapter, len(rows)) for adapter, rows in drawn])


@cache
def _model() -> nn.Module:
    return with_adapters(tiny_model("bert").double())


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES[:5])
def test_in_float32(architecture: str, run_packed: bool) -> None:
    model, batch = with_adapters(tiny_model(architecture)), ragged(LENGTHS)
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, batch, tolerance=2e-5)


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES[:5])
def test_with_gradient_checkpointing(architecture: str, run_packed: bool) -> None:
    model = in_training(with_adapters(tiny_model(architecture).double()))
    enable_gradient_checkpointing(model)
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, ragged(LENGTHS))


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_batch_that_packed_runs_padded(architecture: str) -> None:
    model = with_adapters(tiny_model(architecture).double())
    with packed(model):
        assert_each_has_its_own(model, ragged(LENGTHS, left=True))
        assert_each_has_its_own(model, ragged(LENGTHS))


@pytest.mark.parametrize("run_packed", [False, True])
def test_under_mixed_precision(run_packed: bool) -> None:
    model, batch = with_adapters(tiny_model("bert")), ragged(LENGTHS)
    with packed(model) if run_packed else nullcontext(), torch.autocast("cpu", torch.bfloat16):
        assert_each_has_its_own(model, batch, tolerance=0.1)
        with mixed(model, SEGMENTS):
            assert model(**batch).logits.dtype == torch.bfloat16


def test_dropout_of_each_adapter_in_training() -> None:
    dropped = {name: replace(method, dropout=0.9) for name, method in METHODS.items()}
    model, batch = with_adapters(tiny_model("bert"), dropped), ragged(LENGTHS)
    in_training(model)
    with mixed(model, SEGMENTS):
        first, second = (model(**batch).logits for _ in range(2))
    changed = (first - second).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, True, False, True, True, True, True]  # the base drops nothing
