"""Packed equals padded: every architecture that can, whatever the lengths."""

import pytest
import torch

from deltafit.adapters import adapt
from deltafit.engine import packed
from deltafit.methods import LastBlocks, LoRA
from deltafit.tasks.classification import collate, logits_of
from deltafit.tasks.pooling import POOLINGS, Pooling, pool
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import head_of, randomise
from tests.engine.ragged import (
    LENGTHS,
    PACKABLE,
    assert_same,
    classifier,
    in_training,
    outputs_and_gradients,
    ragged,
    shapes_in_blocks,
    size,
)
from tests.tiny_models import DECODERS, HIDDEN, tiny_model


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_is_padded(architecture: str, lengths: tuple[int, ...]) -> None:
    model, batch = classifier(architecture), ragged(lengths)
    expected = outputs_and_gradients(model, batch)
    with packed(model), shapes_in_blocks(model) as shapes:
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, sum(lengths))]
    assert_same(found, expected)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_is_padded_under_an_adapter(architecture: str) -> None:
    # In float64: random adapters as large as these would let rounding in float32 grow.
    model, batch = classifier(architecture).double(), ragged(LENGTHS["mixed"])
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model)
    expected = outputs_and_gradients(model, batch)
    assert any("lora_A" in name for name in expected[1])
    with packed(model):
        assert_same(outputs_and_gradients(model, batch), expected)
        adapt(model, LastBlocks(1), name="another", head=head_of(model))
        other = outputs_and_gradients(model, batch)
    assert_same(outputs_and_gradients(model, batch), other)


# With a probability below what numbers of 16 bits can tell from zero, attention weights are written
# out as for dropout, and none is dropped.
@pytest.mark.parametrize("probability", [0.0, 1e-9])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_is_padded_in_training(
    architecture: str, checkpointing: bool, probability: float
) -> None:
    model = in_training(classifier(architecture).double(), probability)
    batch = ragged(LENGTHS["mixed"])
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model, std=0.1)  # T5 norms in float32 in float64 too, and larger ones let that grow
    expected = outputs_and_gradients(model, batch)
    if checkpointing:
        enable_gradient_checkpointing(model)
    with packed(model), shapes_in_blocks(model) as shapes:
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, 27)] * (1 + checkpointing)  # the second from the backward pass
    assert_same(found, expected)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "modernbert", "t5", "umt5"])
def test_a_block_that_runs_again_has_the_layout_of_its_batch(architecture: str) -> None:
    model, batch = in_training(classifier(architecture)), ragged(LENGTHS["mixed"])
    enable_gradient_checkpointing(model)
    logits_of(model, batch).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with packed(model):
        loss = logits_of(model, batch).square().sum()
        model(**ragged((3, 2)))  # another layout in between
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_same((loss, gradients), (loss, expected))


@pytest.mark.parametrize("architecture", ["bert", "llama", "modernbert", "t5", "umt5"])
def test_each_batch_has_its_own_layout(architecture: str) -> None:
    model = classifier(architecture)
    batches = [ragged((9, 2, 4)), ragged((2, 9, 4)), ragged((4, 4), width=9), ragged((9, 2, 4))]
    batches.append(ragged((4,), width=9))
    expected = [outputs_and_gradients(model, batch) for batch in batches]
    with packed(model):
        for batch, result in zip(batches, expected, strict=True):
            assert_same(outputs_and_gradients(model, batch), result)


@pytest.mark.parametrize("architecture", ["mistral", "modernbert"])
@pytest.mark.parametrize("window", [1, 3, 10, 20])  # 10: only the longest row notices
def test_sliding_windows(architecture: str, window: int) -> None:
    model, batch = tiny_model(architecture), ragged((12, 2, 7, 7, 3))
    unlimited = outputs_and_gradients(model, batch)
    model.config.sliding_window = window
    expected = outputs_and_gradients(model, batch)
    assert (size(expected[0] - unlimited[0]) > 1e-3) == (window < 12)
    with packed(model), shapes_in_blocks(model) as shapes:
        found = outputs_and_gradients(model, batch)
    assert shapes == [(1, 31)]
    assert_same(found, expected)


@pytest.mark.parametrize("architecture", DECODERS[:4])
def test_positions_given_with_the_batch(architecture: str) -> None:
    model = tiny_model(architecture)
    rows = [[5, 6, 7, 8], [9], [10, 11, 12]]
    batch = collate(rows, pad_token_id=1, positions=True)
    batch["position_ids"] = batch["position_ids"] + torch.tensor([[0], [7], [3]])
    expected = outputs_and_gradients(model, batch)
    with packed(model):
        assert_same(outputs_and_gradients(model, batch), expected)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("case", ["left", "no mask", "an empty row", "four dimensions"])
def test_what_cannot_be_packed_runs_padded(architecture: str, case: str) -> None:
    model, batch = tiny_model(architecture), ragged((6, 3, 4), left=case == "left")
    if case == "no mask":
        del batch["attention_mask"]
    elif case == "an empty row":
        batch["attention_mask"][1] = 0
    elif case == "four dimensions":
        seen = batch["attention_mask"].bool()[:, None, None].expand(3, 1, 6, 6)
        batch["attention_mask"] = seen & torch.eye(6, dtype=torch.bool).cumsum(0).bool()
    expected = outputs_and_gradients(model, batch)
    with packed(model), shapes_in_blocks(model) as shapes:
        found = outputs_and_gradients(model, batch)
    assert shapes == [(3, 6)]
    assert torch.equal(found[0], expected[0])
    assert_same(found, expected)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "umt5"])
def test_poolings_see_the_padded_states(architecture: str, pooling: Pooling) -> None:
    model = classifier(architecture, pooling)
    batch = ragged(LENGTHS["mixed"])
    expected = outputs_and_gradients(model, batch)
    with packed(model):
        assert_same(outputs_and_gradients(model, batch), expected)


def test_the_last_state_of_padding_is_zero() -> None:
    model, batch = tiny_model("bert", task="base"), ragged((4, 1, 3), width=6)
    with packed(model), torch.inference_mode():
        state = model(**batch).last_hidden_state
    tokens = batch["attention_mask"].bool()
    assert state.shape == (3, 6, HIDDEN)
    assert not state[~tokens].any() and state[tokens].any(-1).all()
    assert pool(state, batch["attention_mask"], "mean").isfinite().all()


@pytest.mark.parametrize("probability", [0.0, 1e-9])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "umt5"])
def test_under_mixed_precision(architecture: str, probability: float) -> None:
    model = in_training(classifier(architecture), probability)
    batch = ragged(LENGTHS["mixed"])
    exact = outputs_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16), packed(model):
        found = outputs_and_gradients(model, batch)
    assert size(found[0] - exact[0]) < 0.1 * size(exact[0])
    for name, gradient in exact[1].items():
        if "bias" not in name:
            assert size(found[1][name] - gradient) < 0.2 * size(gradient), name
