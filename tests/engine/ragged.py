"""Batches of rows of given lengths, what blocks were given of them, and gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltafit.adapters.structure import is_matrix, main_stack
from deltafit.tasks.pooling import PooledClassifier, Pooling
from tests.tiny_models import (
    ARCHITECTURES,
    ENCODERS_ALONE,
    FIRST_WORD,
    HIDDEN,
    PAD,
    VOCABULARY,
    tiny_model,
)

PACKABLE = (
    *(n for n in ARCHITECTURES if n not in ("deberta-v2", "mpnet", "gemma2")),
    *ENCODERS_ALONE,
)

LONGEST = 62  # OPT and RoBERTa count their 64 positions from the pad token's
LENGTHS = {
    "mixed": (9, 5, 1, 5, 7),
    "equal": (6, 6, 6),
    "one row": (5,),
    "one token": (1, 1, 1),
    "one token in one row": (1,),
    "one to the most": tuple(range(1, LONGEST + 1)),
}


def classifier(architecture: str, pooling: Pooling | None = None) -> nn.Module:
    """A tiny model with its own head, or a random linear one on a pooled encoder; evaluating."""
    if pooling is None and architecture not in ENCODERS_ALONE:
        return tiny_model(architecture)
    encoder = tiny_model(architecture, task="base")
    model = PooledClassifier(encoder, HIDDEN, 3, pooling or "mean", dropout=0.0).eval()
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    return model


def ragged(
    lengths: Sequence[int], *, seed: int = 0, left: bool = False, width: int | None = None
) -> dict[str, Tensor]:
    """Rows of these lengths, padded on one side to the longest or to ``width``."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    input_ids = torch.full((len(lengths), width), PAD)
    attention_mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if left else slice(0, length)
        words = torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=generator)
        input_ids[row, place], attention_mask[row, place] = words, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@contextmanager
def shapes_in_blocks(model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """The leading shapes of what the first linear layer of the last block is given."""
    seen: list[tuple[int, int]] = []
    block = model.get_submodule(main_stack(model).blocks[-1])
    linear = next(filter(is_matrix, block.modules()))
    hook = linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    try:
        yield seen
    finally:
        hook.remove()


def outputs_and_gradients(
    model: nn.Module, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of a loss in which every logit counts differently."""
    output = model(**batch)
    logits = output if isinstance(output, Tensor) else output.logits
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = (logits * torch.arange(1.0, logits.numel() + 1).view(logits.shape).cos()).sum()
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    named = zip(trainable, gradients, strict=True)
    return logits.detach(), {n: g for n, g in named if g is not None}


def assert_same(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    """Equal up to rounding, relative to the largest logit and the gradients' sizes."""
    # In float64 too some models compute their norms and rotary tables in float32.
    tolerance = 2e-6 if expected[0].dtype == torch.float32 else 5e-7
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=tolerance * size(expected[0]))
    assert found[1].keys() == expected[1].keys() and expected[1]
    largest = max(map(size, expected[1].values()))
    assert largest > 0
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name],
            gradient,
            rtol=0,
            # The gradient of a key's bias is zero but for rounding.
            atol=5 * tolerance * max(size(gradient), 0.1 * largest),
            msg=lambda message, name=name: f"{name}: {message}",
        )


def size(tensor: Tensor) -> float:
    """The largest absolute value."""
    return float(tensor.detach().abs().max())


def in_training(model: nn.Module, probability: float = 0.0) -> nn.Module:
    """The model in training mode, its blocks dropping with this probability alone."""
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
    return model.train()
