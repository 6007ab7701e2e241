"""The time of a model's matrix products alone: what no way of training or predicting can spare."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltafit.adapters.structure import main_stack, within

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
    """

    weight: Tensor
    to_input: bool = False
    to_weight: bool = False
    constant: bool = False


def products_of(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Product]:
    """Return the products of a model's blocks, as torch's graph of one batch has them.

    Args:
        model: adapted, with its trainable parameters requiring gradients.
        batch: its keywords.
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
        product.constant = (stack.index_of(name) or 0) < lowest
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
    kept: Sequence[int] | None = None,
) -> float:
    """Return the seconds of the products of training steps, on random inputs.

    Args:
        products: of the blocks.
        steps: real tokens of each step.
        precision: of the products.
        kept: real tokens of each pass that computed the constant blocks once for all epochs; None
            where every step computes them.
    """
    each = [p for p in products if kept is None or not p.constant]
    once = [Product(p.weight) for p in products if p.constant]
    return _seconds(each, steps, precision) + _seconds(once, kept or (), precision)


def forward_seconds(products: Sequence[Product], passes: Sequence[int], precision: str) -> float:
    """Return the seconds of the forward products of passes of so many real tokens."""
    return _seconds([Product(p.weight) for p in products], passes, precision)


@torch.no_grad()
def _seconds(products: Sequence[Product], tokens: Sequence[int], precision: str) -> float:
    if not products or not tokens:
        return 0.0
    dtype = DTYPES[precision]
    weights = [product.weight.to(dtype) for product in products]
    widths = {width for weight in weights for width in weight.shape}
    random = {width: torch.randn(max(tokens), width).to(dtype) for width in widths}

    def multiply(count: int) -> None:
        for product, weight in zip(products, weights, strict=True):
            outputs, inputs = (random[width][:count] for width in weight.shape)
            inputs @ weight.T
            if product.to_input:
                outputs @ weight
            if product.to_weight:
                outputs.T @ inputs

    multiply(tokens[0])  # warm-up
    began = time.perf_counter()
    for count in tokens:
        multiply(count)
    return time.perf_counter() - began
