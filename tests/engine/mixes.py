"""Several adapters on one tiny model: a batch through each alone, and through all in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltafit.adapters import activate, adapt, adapter_tensors, model_adapters
from deltafit.engine import mixed
from deltafit.methods import LoRA, Method
from tests.adapters.adapted import head_of, randomise

Segment = tuple[str | None, int]
Gradients = dict[str, Tensor]

SEGMENTS: tuple[Segment, ...] = (("one", 2), (None, 1), ("two", 1), ("three", 2), ("one", 1))
LENGTHS = (9, 2, 5, 1, 5, 7, 3)  # of the seven rows of these segments

METHODS: dict[str, Method] = {
    "one": LoRA(rank=2, alpha=3),
    "two": LoRA(target_modules="all-linear", rank=4, alpha=4, scaling="alpha/sqrt(r)"),
    "three": LoRA(rank=1, layers=(0, 2)),
}


def with_adapters(model: nn.Module, methods: dict[str, Method] = METHODS) -> nn.Module:
    """The model with random adapters, each with a head of its own; none is active."""
    head = head_of(model)
    for seed, (name, method) in enumerate(methods.items()):
        adapt(model, method, name=name, head=head)
        randomise(model, name, seed)
    activate(model, None)
    return model


def alone(
    model: nn.Module, batch: dict[str, Tensor], segments: Sequence[Segment]
) -> tuple[list[Tensor], Gradients]:
    """Each segment's logits with its adapter active, and the gradients of all adapters' tensors."""
    before, logits, gradients = model_adapters(model).active, [], {}
    start = 0
    for adapter, count in segments:
        activate(model, adapter)
        rows = {name: tensor[start : start + count] for name, tensor in batch.items()}
        logits.append(_logits(model, rows))
        if adapter is not None:
            tensors = adapter_tensors(model, adapter)
            found = _gradients([logits[-1]], tensors, start)
            for name, gradient in found.items():
                key = f"{adapter}/{name}"
                gradients[key] = gradients.get(key, torch.zeros(())) + gradient
        start += count
    activate(model, before)
    return [part.detach() for part in logits], gradients


def together(
    model: nn.Module, batch: dict[str, Tensor], segments: Sequence[Segment]
) -> tuple[list[Tensor], Gradients]:
    """The same from one pass."""
    tensors = {
        f"{adapter}/{name}": tensor
        for adapter in dict.fromkeys(adapter for adapter, _ in segments)
        if adapter is not None
        for name, tensor in adapter_tensors(model, adapter).items()
    }
    required = {name: tensor.requires_grad for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    with mixed(model, segments):
        logits = _logits(model, batch).split([count for _, count in segments])
        # Where a segment has fewer labels than another, it is padded.
        own = [part[:, part.isfinite().all(0)] for part in logits]
        gradients = _gradients(own, tensors, 0)
    for name, tensor in tensors.items():
        tensor.requires_grad_(required[name])
    return [part.detach() for part in own], gradients


def assert_each_has_its_own(
    model: nn.Module,
    batch: dict[str, Tensor],
    segments: Sequence[Segment] = SEGMENTS,
    tolerance: float | None = None,
) -> None:
    """One pass gives each segment what it gets alone: logits and gradients."""
    expected, expected_gradients = alone(model, batch, segments)
    found, gradients = together(model, batch, segments)
    if tolerance is None:
        # In float64 too some models compute their norms and rotary tables in float32.
        tolerance = 1e-5 if expected[0].dtype == torch.float32 else 5e-7
    for part, own in zip(found, expected, strict=True):
        assert part.shape == own.shape
        size = max(1.0, float(own.abs().max()))
        torch.testing.assert_close(part, own, rtol=0, atol=tolerance * size)
    assert gradients.keys() == expected_gradients.keys()
    largest = max((float(g.abs().max()) for g in expected_gradients.values()), default=0.0)
    for name, gradient in expected_gradients.items():
        size = max(float(gradient.abs().max()), 0.1 * largest)
        torch.testing.assert_close(
            gradients[name],
            gradient,
            rtol=0,
            atol=tolerance * size,
            msg=lambda message, name=name: f"{name}: {message}",
        )


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output = model(**batch)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _gradients(parts: Sequence[Tensor], tensors: dict[str, Tensor], start: int) -> Gradients:
    """Of a loss in which every logit counts by its row and label."""
    if not tensors:
        return {}
    loss = torch.zeros(())
    for part in parts:
        rows = torch.arange(start, start + len(part)).unsqueeze(1)
        labels = torch.arange(part.shape[1])
        loss = loss + (part * (1.0 + 7 * rows + 3 * labels).cos()).sum()
        start += len(part)
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {n: g for n, g in zip(tensors, found, strict=True) if g is not None}
