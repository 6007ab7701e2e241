"""The check before adapters share passes finds rows that went elsewhere, and leaves no trace."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import activate, adapt, adapter_tensors, model_adapters
from deltafit.engine import (
    check_mixing,
    division,
    find_keys_and_values,
    first_tokens,
    mixed_modules,
    packed,
)
from deltafit.methods import LoRA
from tests.adapters.adapted import head_of
from tests.engine.ragged import classifier, ragged

PAIR = ("one", "two")
BATCH = ragged((6, 2))


def fresh(architecture: str = "bert", *, zero_head: bool = False) -> nn.Module:
    """Two runs of one seed before their first step: nothing tells their logits apart."""
    model = classifier(architecture)
    head = head_of(model)
    for name in PAIR:
        adapt(model, LoRA("all-linear", rank=2), name=name, head=head)
        if zero_head:
            for tensor in head:
                nn.init.zeros_(model_adapters(model).adapters[name].replaced[tensor])
    activate(model, "one")
    return model


@pytest.mark.parametrize("how", ["padded", "packed", "first tokens"])
@pytest.mark.parametrize("zero_head", [False, True])
def test_what_is_right_passes_and_nothing_is_changed(how: str, zero_head: bool) -> None:
    model = fresh(zero_head=zero_head).train()
    tensors = {f"{a}/{n}": p for a in PAIR for n, p in adapter_tensors(model, a).items()}
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in tensors.items()}
    random = torch.get_rng_state()
    with ExitStack() as stack:
        if how != "padded":
            layers = find_keys_and_values(model, BATCH)
            stack.enter_context(packed(model))
            if how == "first tokens":
                stack.enter_context(first_tokens(model, layers))
        assert check_mixing(model, BATCH, PAIR) is None
    assert model_adapters(model).active == "one" and all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    for name, (value, required) in before.items():
        assert torch.equal(tensors[name], value), name
        assert (tensors[name].requires_grad, tensors[name].grad) == (required, None), name


def swapped(cut: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
    return lambda self, ordered: [*reversed(cut(self, ordered))]


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("zero_head", [False, True])
def test_rows_that_go_through_the_others_adapter_are_found(
    monkeypatch: pytest.MonkeyPatch, run_packed: bool, zero_head: bool
) -> None:
    model = fresh(zero_head=zero_head)
    monkeypatch.setattr(division._Rows, "cut", swapped(division._Rows.cut))  # and of sheets
    with ExitStack() as stack:
        if run_packed:
            stack.enter_context(packed(model))
        reason = check_mixing(model, BATCH, PAIR)
    assert reason is not None
    assert "does not give the same when several adapters share one pass" in reason


def test_a_gradient_that_is_another_adapters_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are right, and what goes back is not."""
    model = fresh()

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            return 2 * gradients[0]

    real = division._Rows.cut
    monkeypatch.setattr(
        division._Rows,
        "cut",
        lambda self, ordered: [Doubled.apply(part) for part in real(self, ordered)],
    )
    reason = check_mixing(model, BATCH, PAIR)
    assert reason is not None and "the gradient of" in reason


def test_what_overflows_by_itself_is_not_held_against_sharing() -> None:
    """A run that will diverge is to say so itself, and its neighbour is looked at all the same."""
    model = classifier("bert")
    for name, alpha in zip(PAIR, (4.0, 1e30), strict=True):
        adapt(model, LoRA(rank=2, alpha=alpha), name=name, head=head_of(model))
    activate(model, "one")
    assert check_mixing(model, BATCH, PAIR) is None
    assert check_mixing(model, BATCH, ("two", "one")) is None


def test_a_failure_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    tensors = {f"{a}/{n}": p for a in PAIR for n, p in adapter_tensors(model, a).items()}
    before = {name: p.detach().clone() for name, p in tensors.items()}

    def fail(*args: object) -> None:
        raise ValueError("three wheels")

    monkeypatch.setattr(mixed_modules.MixedModule, "forward", fail)
    reason = check_mixing(model, BATCH, PAIR)
    assert reason is not None and reason.endswith("adapters in one pass: three wheels")
    assert all(torch.equal(tensors[name], value) for name, value in before.items())
