"""The last block for first tokens alone: padded results, wherever it is done at all."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deltafit.adapters import adapt
from deltafit.adapters.structure import is_matrix, main_stack
from deltafit.engine import (
    CannotPackError,
    find_keys_and_values,
    find_prefix,
    find_reading,
    first_tokens,
    packed,
    reduced_products,
)
from deltafit.methods import LastBlocks, LoRA, Method
from deltafit.tasks.pooling import PooledClassifier, Pooling
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import anatomy, head_of, randomise
from tests.engine.mixes import LENGTHS as LENGTHS_OF_SEGMENTS
from tests.engine.mixes import SEGMENTS, assert_each_has_its_own, with_adapters
from tests.engine.ragged import (
    LENGTHS,
    assert_same,
    classifier,
    in_training,
    outputs_and_gradients,
    ragged,
    size,
)
from tests.tiny_models import HIDDEN, tiny_model

READERS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
LOOKED_AT = ragged((8, 3, 5), seed=1)


@contextmanager
def reading(model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """The model packed, its last block for first tokens; yields the shapes that block sees."""
    layers = find_reading(model, LOOKED_AT)
    assert layers is not None
    shapes: list[tuple[int, int]] = []
    block = model.get_submodule(main_stack(model).blocks[-1])
    query = next(filter(is_matrix, block.modules()))
    hook = query.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[:2]))
    try:
        with packed(model), first_tokens(model, layers):
            yield shapes
    finally:
        hook.remove()


def pooled(architecture: str, pooling: Pooling) -> PooledClassifier:
    """With a head that starts at zero."""
    encoder = tiny_model(architecture, task="base")
    return PooledClassifier(encoder, HIDDEN, 3, pooling, dropout=0.0).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("architecture", READERS)
def test_it_is_padded(architecture: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    model, batch = tiny_model(architecture).to(dtype), ragged(lengths)
    expected = outputs_and_gradients(model, batch)
    with reading(model) as shapes:
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, len(lengths))]
    assert_same(found, expected)


# With a probability below what numbers of 16 bits can tell from zero, attention weights are written
# out as for dropout, and none is dropped.
@pytest.mark.parametrize("probability", [0.0, 1e-9])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", READERS)
def test_it_is_padded_in_training(
    architecture: str, checkpointing: bool, probability: float
) -> None:
    model = tiny_model(architecture).double()
    adapt(model, LoRA("all-linear", rank=2), head=head_of(model))
    randomise(model)
    in_training(model, probability)
    batch = ragged(LENGTHS["mixed"])
    expected = outputs_and_gradients(model, batch)
    assert sum("layer.2" in name and "lora_B" in name for name in expected[1]) == 6
    with reading(model) as shapes:
        if checkpointing:
            enable_gradient_checkpointing(model)
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, 5)] * (1 + checkpointing)  # the second from the backward pass
    assert_same(found, expected)


def test_a_block_whose_hooks_run_again_in_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = in_training(tiny_model("bert").double(), 0.0), ragged(LENGTHS["mixed"])
    expected = outputs_and_gradients(model, batch)

    def called(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = partial(nn.Module.__call__, block, **kwargs)
        return checkpoint(call, *args, use_reentrant=False)

    monkeypatch.setattr(type(model.bert.encoder.layer[-1]), "__call__", called)
    with reading(model) as shapes:
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, 5)] * 2
    assert_same(found, expected)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("method", [LastBlocks(1), LoRA("all-linear", rank=2, layers=(-1,))])
@pytest.mark.parametrize("architecture", READERS)
def test_it_is_padded_above_a_frozen_prefix(
    architecture: str, method: Method, padded: bool
) -> None:
    model, batch = tiny_model(architecture).double(), ragged(LENGTHS["mixed"])
    adapt(model, method, head=head_of(model))
    expected = outputs_and_gradients(model, batch)
    prefix = find_prefix(model, list(expected[1]), LOOKED_AT)
    assert prefix is not None
    states = prefix.states(batch)
    with reading(model) as shapes:
        states = states if padded else prefix.states(batch)
        assert (states.shape[0] == 1) is not padded
        with prefix.fed(states, padded=padded):
            found = outputs_and_gradients(model, batch)
    assert shapes == [(1, 5)]
    assert_same(found, expected)


def test_a_pooled_head_that_starts_at_zero_is_told_by_what_it_reads() -> None:
    assert find_reading(pooled("bert", "cls"), LOOKED_AT) is not None
    for pooling in ("mean", "last"):
        for gradients in (True, False):
            model = pooled("bert", pooling)  # type: ignore[arg-type]  # a pooling
            assert find_reading(model, LOOKED_AT, gradients=gradients) is None


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "modernbert", "opt", "t5"])
def test_blocks_of_another_kind_are_refused(architecture: str) -> None:
    model = classifier(architecture)
    with pytest.raises(CannotPackError, match="straight from its input, in a layer each"):
        find_keys_and_values(model, LOOKED_AT)
    assert find_reading(model, LOOKED_AT) is None


def test_what_a_batch_does_not_show_is_refused() -> None:
    assert find_reading(tiny_model("bert"), ragged((1, 1))) is None
    assert find_reading(tiny_model("bert", task="base"), LOOKED_AT) is None


def test_a_block_that_mixes_its_tokens_is_refused() -> None:
    model = tiny_model("bert")
    dense = model.bert.encoder.layer[-1].intermediate.dense
    dense.register_forward_pre_hook(lambda module, args: args[0] + args[0].mean(1, keepdim=True))
    before = anatomy(model)
    assert find_reading(model, LOOKED_AT) is None
    assert anatomy(model) == before


def test_nothing_is_left_behind() -> None:
    model = tiny_model("bert")
    before, state = anatomy(model), torch.get_rng_state()
    with reading(model):
        model(**LOOKED_AT)
    assert anatomy(model) == before and torch.equal(torch.get_rng_state(), state)


def test_it_takes_a_packed_model() -> None:
    model = tiny_model("bert")
    layers = find_reading(model, LOOKED_AT)
    assert layers is not None
    with pytest.raises(ValueError, match="inside packed"), first_tokens(model, layers):
        pass


def test_only_the_classifier_reads_first_tokens_alone() -> None:
    model, batch = tiny_model("bert"), ragged(LENGTHS["mixed"])
    with packed(model), torch.no_grad():
        expected = model.bert(**batch).last_hidden_state
    with reading(model), torch.no_grad():
        before = model.bert(**batch).last_hidden_state
        model(**batch)
        with pytest.raises(CannotPackError):
            model(**batch, output_hidden_states=True)
        after = model.bert(**batch).last_hidden_state
    assert torch.equal(before, expected) and torch.equal(after, expected)


def test_all_other_states_are_spoilt() -> None:
    model, batch = tiny_model("bert"), ragged(LENGTHS["mixed"])
    states = []
    model.bert.register_forward_hook(lambda module, args, output: states.append(output[0]))
    with reading(model):
        states.clear()
        assert model(**batch).logits.isfinite().all()
    (state,) = states
    assert state[:, 0].isfinite().all() and state[:, 1:].isnan().all()


@pytest.mark.parametrize("left", [True, False])
def test_what_runs_padded_runs_whole(left: bool) -> None:
    model, batch = tiny_model("bert"), ragged((6, 3, 4), left=left)
    if not left:
        del batch["attention_mask"]
    expected = outputs_and_gradients(model, batch)
    with reading(model) as shapes:
        assert_same(outputs_and_gradients(model, batch), expected)
    assert shapes == [(3, 6)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_row_goes_through_its_own_adapter(checkpointing: bool) -> None:
    model = with_adapters(tiny_model("bert").double())
    with reading(model) as shapes:
        if checkpointing:
            in_training(model)
            enable_gradient_checkpointing(model)
        assert_each_has_its_own(model, ragged(LENGTHS_OF_SEGMENTS), SEGMENTS)
    assert (1, len(LENGTHS_OF_SEGMENTS)) in shapes


@pytest.mark.parametrize("lower", ["products", "autocast"])
def test_in_bf16(lower: str) -> None:
    model, batch = tiny_model("bert"), ragged(LENGTHS["mixed"])
    adapt(model, LoRA("all-linear", rank=2), head=head_of(model))
    randomise(model, std=0.05)
    in_training(model)
    exact = outputs_and_gradients(model, batch)
    with (
        reading(model) as shapes,
        torch.autocast("cpu", torch.bfloat16) if lower == "autocast" else nullcontext(),
        reduced_products(model) if lower == "products" else nullcontext(),
    ):
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, 5)]
    assert 0 < size(found[0] - exact[0]) < 0.1 * size(exact[0])
    for name, gradient in exact[1].items():
        assert size(found[1][name] - gradient) < 0.2 * size(gradient), name


@pytest.mark.slow
def test_dropout_repeats_from_the_seed_and_drops_nothing_on_average() -> None:
    model, batch = tiny_model("bert"), ragged(LENGTHS["mixed"])
    with reading(model), torch.no_grad():
        exact = model(**batch).logits
        model.bert.encoder.layer[-1].attention.self.train()  # its attention weights alone
        model.bert.encoder.layer[-1].attention.self.dropout.p = 0.2
        drawn = []
        for seed in (*range(300), 0):
            torch.manual_seed(seed)
            drawn.append(model(**batch).logits)
    assert torch.equal(drawn[0], drawn[-1]) and not torch.equal(drawn[0], drawn[1])
    several = torch.stack(drawn[:-1])
    error = (several.mean(0) - exact).abs()
    assert (several.std(0)[batch["attention_mask"].sum(1) > 1] > 0).all()
    assert error.max() < 0.1 * size(exact)
