"""Whether adapters that share a pass give what each gives alone: one batch both ways."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.adapters.model import activate, trained_tensors
from deltafit.engine.agreement import Results, first_difference
from deltafit.engine.calls import evaluating, weighted_sum
from deltafit.engine.mixed import mixed

_NOISE = 0.05  # added to every trained value, far more than rounding and far less than most weights

_OUTPUT = "its output"

Trained = dict[str, nn.Parameter]


def check_mixing(
    model: nn.Module, batch: Mapping[str, Tensor], pair: tuple[str, str]
) -> str | None:
    """Return None if two adapters in one pass give what each gives alone; else why not.

    The batch runs once for both and once for each, forward and backward, without dropout, and
    packed or for first tokens where the call is made within ``packed`` or ``first_tokens``.
    Before training, adapters that start alike give the same, and a head that starts at zero gives
    nothing; so for the check all that they train is moved a little at random. It is put back.

    Args:
        model: with these adapters; the first is the active one afterwards.
        batch: its keywords.
        pair: the adapters' names.
    """
    kind = type(model).__name__
    tensors = {adapter: trained_tensors(model, adapter) for adapter in pair}
    try:
        with evaluating(model), _moved(p for own in tensors.values() for p in own.values()):
            alone = {each: _alone(model, batch, each, tensors[each]) for each in reversed(pair)}
            labels = [alone[adapter][0][_OUTPUT].shape[1] for adapter in pair]
            together = _together(model, batch, pair, tensors, labels)
    except Exception as error:  # what layers unknown here do with the rows of two can end in any
        return f"{kind} cannot run several adapters in one pass: {error}"
    for adapter, number in zip(pair, ("first", "second"), strict=True):
        reason = first_difference(alone[adapter], together[adapter])
        # What overflows by itself, as at a wild scaling, is no fault of sharing.
        if reason is not None and _finite(alone[adapter]):
            return (
                f"{kind} does not give the same when several adapters share one pass: for the "
                f"{number} of two {reason}."
            )
    return None


def _finite(results: Results) -> bool:
    return all(bool(value.isfinite().all()) for part in results for value in part.values())


def _alone(
    model: nn.Module, batch: Mapping[str, Tensor], adapter: str, trained: Trained
) -> Results:
    activate(model, adapter)
    with torch.enable_grad(), _requiring(trained):
        logits = _logits(model(**batch))
        return _results(logits, _gradients(weighted_sum(logits), trained))


def _together(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    pair: tuple[str, str],
    tensors: Mapping[str, Trained],
    labels: Sequence[int],
) -> dict[str, Results]:
    rows = len(next(iter(batch.values())))
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    both = {f"{adapter}/{n}": p for adapter in pair for n, p in tensors[adapter].items()}
    with torch.enable_grad(), _requiring(both), mixed(model, [(each, rows) for each in pair]):
        parts = _logits(model(**twice)).split(rows)
        # Where one has fewer labels than the other, its rows are padded.
        own = zip(pair, parts, labels, strict=True)
        logits = {adapter: part[:, :count] for adapter, part, count in own}
        loss = sum((weighted_sum(part) for part in logits.values()), start=torch.zeros(()))
        gradients = _gradients(loss, both)
    return {
        adapter: _results(
            logits[adapter], {n: gradients[f"{adapter}/{n}"] for n in tensors[adapter]}
        )
        for adapter in pair
    }


def _results(logits: Tensor, gradients: Mapping[str, Tensor | None]) -> Results:
    named = {f"the gradient of {n}": g for n, g in gradients.items() if g is not None}
    return {_OUTPUT: logits.detach()}, named


def _gradients(loss: Tensor, trained: Trained) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))


@contextmanager
def _moved(tensors: Iterable[nn.Parameter]) -> Iterator[None]:
    """Add noise to every value within the block, and put each tensor back bit for bit."""
    generator = torch.Generator().manual_seed(0)
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    with torch.no_grad():
        for tensor, value in kept:
            noise = torch.randn(value.shape, generator=generator)
            tensor.add_(_NOISE * noise.to(value))
        try:
            yield
        finally:
            for tensor, value in kept:
                tensor.copy_(value)


@contextmanager
def _requiring(tensors: Trained) -> Iterator[None]:
    """Let every tensor require a gradient within the block."""
    required = {name: tensor.requires_grad for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.requires_grad_(required[name])


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
