"""The time of a model's matrix products alone: what no way of training or predicting can spare."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltafit.adapters.structure import main_stack, within
from deltafit.engine import KeysAndValues

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Product:
    """A linear layer of a block, and what its products are needed for in a step.

    Attributes:
        weight: ``[outputs, inputs]``.
        to_input: whether the gradient goes on to its input.
        to_weight: whether its weight is trained whole.
        constant: whether it lies in blocks below the lowest trained layer, so that a text needs
            it once for all epochs.
        of_texts: whether it is needed of one token of each text alone.
    """

    weight: Tensor
    to_input: bool = False
    to_weight: bool = False
    constant: bool = False
    of_texts: bool = False


def products_of(
    model: nn.Module, batch: Mapping[str, Tensor], reads: KeysAndValues | None = None
) -> list[Product]:
    """Return the products of a model's blocks, as torch's graph of one batch has them.

    Args:
        model: adapted, with its trainable parameters requiring gradients.
        batch: its keywords.
        reads: where the last block's keys and values come from, if the head reads first tokens
            alone: nothing else there is needed of the other tokens.
    """
    stack = main_stack(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    lowest = min(
        (i for name in trained if (i := stack.index_of(name)) is not None), default=stack.length
    )
    products: list[Product] = []
    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not within(name, stack.name):
            continue
        product = Product(module.weight.detach(), to_weight=module.weight.requires_grad)
        index = stack.index_of(name) or 0
        product.constant = index < lowest
        last = index == stack.length - 1 and not product.constant
        product.of_texts = reads is not None and last and name not in (reads.key, reads.value)
        products.append(product)

        def note(module: nn.Module, args: tuple[Tensor, ...], product: Product = product) -> None:
            product.to_input = args[0].requires_grad

        handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.enable_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return products


def training_seconds(
    products: Sequence[Product],
    steps: Sequence[int],
    precision: str,
    *,
    texts: int,
    kept: Sequence[int] | None = None,
) -> float:
    """Return the seconds of the products of training steps, on random inputs.

    Args:
        products: of the blocks.
        steps: real tokens of each step.
        precision: of the products.
        texts: of each step.
        kept: real tokens of each pass that computed the constant blocks once for all epochs; None
            where every step computes them.
    """
    each = [p for p in products if kept is None or not p.constant]
    once = [Product(p.weight) for p in products if p.constant]
    counts = [texts] * len(steps)
    return _seconds(each, steps, counts, precision) + _seconds(once, kept or (), (), precision)


def forward_seconds(
    products: Sequence[Product], passes: Sequence[int], texts: Sequence[int], precision: str
) -> float:
    """Return the seconds of the forward products of passes of so many real tokens and texts."""
    forward = [Product(p.weight, of_texts=p.of_texts) for p in products]
    return _seconds(forward, passes, texts, precision)


@torch.no_grad()
def _seconds(
    products: Sequence[Product], tokens: Sequence[int], texts: Sequence[int], precision: str
) -> float:
    if not products or not tokens:
        return 0.0
    both = list(zip(tokens, texts or tokens, strict=True))
    dtype = DTYPES[precision]
    weights = [product.weight.to(dtype) for product in products]
    widths = {width for weight in weights for width in weight.shape}
    random = {width: torch.randn(max(tokens), width).to(dtype) for width in widths}

    def multiply(tokens: int, texts: int) -> None:
        for product, weight in zip(products, weights, strict=True):
            count = texts if product.of_texts else tokens
            outputs, inputs = (random[width][:count] for width in weight.shape)
            inputs @ weight.T
            if product.to_input:
                outputs @ weight
            if product.to_weight:
                outputs.T @ inputs

    multiply(*both[0])  # warm-up
    began = time.perf_counter()
    for sizes in both:
        multiply(*sizes)
    return time.perf_counter() - began
