"""Feeding a model what its frozen layers gave: the logits and gradients of the whole model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltafit.adapters import adapt
from deltafit.adapters.structure import is_matrix, main_stack
from deltafit.engine.prefix import CannotFeedError, find_prefix
from deltafit.engine.states import StateStore
from deltafit.methods import FreezeFirst, Full, Head, LastBlocks, LoRA, Method
from deltafit.tasks.classification import logits_of
from deltafit.tasks.pooling import PooledClassifier
from tests.adapters.adapted import head_of
from tests.engine.ragged import classifier
from tests.tiny_models import (
    ARCHITECTURES,
    ENCODERS_ALONE,
    LAYERS,
    SHARED_BLOCKS,
    TwoTower,
    tiny_inputs,
    tiny_model,
)

TOPS: dict[str, tuple[Method, int]] = {
    "head": (Head(), 3),
    "last block": (LastBlocks(1), 2),
    "first frozen": (FreezeFirst(1), 1),
    "top layers": (LoRA("all-linear", rank=2, layers=(-1, -2)), 1),
}
HANDED_ON = ("t5", "mt5")  # every block takes the first one's bias of the scores


def adapted(architecture: str, method: Method) -> nn.Module:
    model = classifier(architecture)
    adapt(model, method, head=head_of(model))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(
    model: nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = logits_of(model, batch)
    logits.square().sum().backward()
    found = {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}
    return logits.detach(), found


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ENCODERS_ALONE])
@pytest.mark.parametrize("top", TOPS)
def test_fed_is_unfed(architecture: str, top: str) -> None:
    method, count = TOPS[top]
    model = adapted(architecture, method)
    if architecture in HANDED_ON and count < LAYERS:
        with pytest.raises(CannotFeedError, match="block to block is more than hidden states"):
            find_prefix(model, list(trained(model)), tiny_inputs(model))
        return
    prefix = find_prefix(model, list(trained(model)), tiny_inputs(model))
    assert prefix is not None and len(prefix.blocks) == count
    batch = tiny_inputs(model, batch=4, length=9, seed=1)
    logits, expected = gradients(model, batch)
    states = prefix.states(batch)
    assert prefix.embeddings  # need not run either
    called = []
    handle = prefix.blocks[0].register_forward_hook(lambda m, a, o: called.append(m.training))
    inner = next(m for m in prefix.blocks[0].modules() if is_matrix(m))
    inner.register_forward_hook(lambda *_: called.append("inner"))
    with prefix.fed(states):
        fed, found = gradients(model, batch)
    handle.remove()
    assert "inner" not in called  # the block did not run
    torch.testing.assert_close(fed, logits, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys() and expected
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
    # And nothing is left behind.
    again, _ = gradients(model, batch)
    torch.testing.assert_close(again, logits)


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("bert", Full()),
        ("bert", LoRA(rank=2)),
        ("bert", LoRA(("word_embeddings",), rank=2)),
        ("llama", LoRA(("embed_tokens",), rank=2)),
    ],
)
def test_what_has_no_frozen_prefix(architecture: str, method: Method) -> None:
    model = adapted(architecture, method)
    assert find_prefix(model, list(trained(model)), tiny_inputs(model)) is None


@pytest.mark.parametrize("architecture", SHARED_BLOCKS)
def test_a_block_that_runs_for_several_layers_cannot_be_fed(architecture: str) -> None:
    model = adapted(architecture, Head())
    with pytest.raises(CannotFeedError, match="its blocks share their weights"):
        find_prefix(model, list(trained(model)), tiny_inputs(model))


def test_a_model_without_blocks_has_none() -> None:
    model = TwoTower()
    batch = {"user": torch.randn(2, 12), "item": torch.randn(2, 20)}
    assert find_prefix(model, ["item.2.weight"], batch) is None


def test_a_model_with_a_way_around_the_boundary_cannot_be_fed() -> None:
    """What a block keeps for a later one would be that of another batch."""
    model = adapted("bert", LastBlocks(1))
    first, last = (model.get_submodule(main_stack(model).blocks[i]) for i in (0, 2))
    kept: list[torch.Tensor] = []
    first.register_forward_hook(lambda m, args, output: kept.append(output.detach() * 0.5))
    last.register_forward_hook(lambda m, args, output: output + kept[-1])
    with pytest.raises(CannotFeedError, match="gives something else when it is fed"):
        find_prefix(model, list(trained(model)), tiny_inputs(model))


def test_the_prefix_has_no_dropout_and_the_rest_has() -> None:
    """One dropout may even serve both sides of the boundary."""
    model = adapted("bert", LastBlocks(1))
    shared = nn.Dropout(0.5).eval()
    model.bert.embeddings.dropout = shared
    model.bert.encoder.layer[2].output.dropout = shared
    batch = tiny_inputs(model)
    prefix = find_prefix(model, list(trained(model)), batch)
    assert prefix is not None and not any(m.training for m in model.modules())  # as it was
    expected = prefix.states(batch)
    model.train()
    assert torch.equal(prefix.states(batch), expected)
    assert all(m.training for m in model.modules())
    with prefix.fed(expected):
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_a_trained_table_that_no_module_is_called_for_leaves_no_prefix() -> None:
    """DeBERTa reads its relative positions itself, in every block."""
    method = LoRA("all-linear", rank=2, layers=(-1,), trained_modules=("encoder.rel_embeddings",))
    model = tiny_model("deberta-v2")
    prefix = "deberta.encoder.rel_embeddings"
    adapt(model, replace(method, trained_modules=(prefix,)), head=("classifier.weight",))
    assert find_prefix(model, list(trained(model)), tiny_inputs(model)) is None


def test_a_model_that_fails_when_fed_says_so() -> None:
    """As one whose later layers read what the earlier ones have stored."""
    model = adapted("bert", LastBlocks(1))
    inner = model.get_submodule("bert.encoder.layer.0.attention")
    last = model.get_submodule("bert.encoder.layer.2")
    inner.register_forward_hook(lambda m, args, output: setattr(model, "stored", output[0]))

    def read(module: nn.Module, args: Any) -> None:
        del model.stored

    last.register_forward_pre_hook(read)
    with pytest.raises(CannotFeedError, match=r"the model fails: .*stored"):
        find_prefix(model, list(trained(model)), tiny_inputs(model))


@pytest.mark.parametrize("memory_limit", [1 << 20, 0])
def test_the_store_gives_back_what_was_put(tmp_path: Path, memory_limit: int) -> None:
    lengths = [3, 1, 5, 2]
    store = StateStore(lengths, 4, memory_limit=memory_limit, folder=tmp_path / "new")
    assert store.in_memory == bool(memory_limit) and store.bytes == 4 * 4 * sum(lengths)
    rows = [torch.randn(length, 4) for length in lengths]
    for part in ([2, 0], [1, 3]):
        padded = nn.utils.rnn.pad_sequence([rows[i] for i in part], batch_first=True)
        store.put(part, padded + 0)
    for part in ([0, 1, 2, 3], [3], [1, 2]):
        expected = nn.utils.rnn.pad_sequence([rows[i] for i in part], batch_first=True)
        assert torch.equal(store.get(part), expected)
    assert not list(tmp_path.rglob("*.*"))  # the file has no name to be left under


def test_a_store_larger_than_a_chunk_is_reserved_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.engine.states._CHUNK", 1000)
    store = StateStore([100] * 5, 7, memory_limit=0, folder=tmp_path)
    assert torch.equal(store.get([4]), torch.zeros(1, 100, 7))


def test_a_head_that_starts_at_zero_hides_nothing() -> None:
    """Its logits are the same whatever reaches it."""
    encoder = tiny_model("bert", task="base")
    model = PooledClassifier(encoder, 32, 3, "mean", 0.0)
    names = ["classifier.weight", "classifier.bias"]
    assert find_prefix(model, names, tiny_inputs(encoder)) is not None
    first = model.get_submodule(main_stack(model).blocks[0])
    kept: list[torch.Tensor] = []
    first.register_forward_hook(lambda m, args, output: kept.append(output.detach() * len(kept)))

    def add(module: nn.Module, args: object, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state + kept[-1]
        return output

    encoder.register_forward_hook(add)
    with pytest.raises(CannotFeedError, match="gives something else when it is fed"):
        find_prefix(model, names, tiny_inputs(encoder))


class Bypassed(nn.Module):
    """The head sees the embeddings besides what the blocks make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(64, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded = state = self.embeddings(input_ids)
        for block in self.blocks:
            state = block(state)
        return self.classifier((state + embedded).mean(1))


def test_embeddings_that_are_used_elsewhere_too_go_on_running() -> None:
    torch.manual_seed(0)
    model, batch = Bypassed(), {"input_ids": torch.randint(64, (3, 5))}
    prefix = find_prefix(model, ["classifier.weight", "classifier.bias"], batch)
    assert prefix is not None and prefix.embeddings == ()
    states = prefix.states(batch)
    with prefix.fed(states):
        fed = model(**batch)
    torch.testing.assert_close(fed, model(**batch))
