"""Products with frozen weights in bf16, while a context lasts; all else stays float32.

A frozen weight gets no gradient, so a rounded copy of it loses nothing that training would add up:
adapters, head, norms, the residual stream and the optimiser keep their precision.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from deltafit.adapters.layers import view_of
from deltafit.adapters.structure import is_matrix, main_stack, repeated_blocks
from deltafit.engine.calls import evaluating, first_of, weighted_sum
from deltafit.errors import DeltafitError

# oneDNN compiles a kernel for every new shape, which costs more than some rows of zeros: numbers of
# rows have this many sizes between a power of two and the next, and are multiples of the smallest.
_SIZES = 8
_SMALLEST = 16
# How far bf16 may be, of the size of a token's state. It has 8 bits: rounding alone comes to about
# a hundredth.
LARGEST_ROUNDING = 5e-2
_COPY = "deltafit_copy"


class _Product(torch.autograd.Function):
    """x·Wᵀ and dy·W by the kernels of W's precision; nothing is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        y = _multiply(x, weight.T).to(x.dtype)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = upstream
        dx = _multiply(dy, ctx.weight).to(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, dy.sum(0) if ctx.needs_input_grad[2] else None


def _multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """Return ``x · matrix``, ``[rows, columns]``, in the matrix's dtype."""
    count = x.shape[0]
    rows = rounded_up(count)
    # Rounding the numbers takes a copy anyway; that it has more rows costs nothing more.
    rounded = torch.empty(rows, x.shape[1], dtype=matrix.dtype, device=x.device)
    rounded[:count] = x
    rounded[count:] = 0
    return (rounded @ matrix)[:count]


def rounded_up(count: int) -> int:
    """Return the number of rows that a product of ``count`` rows is computed with.

    From 128 on, at most an eighth more than asked for; up to 2048 there are 40 numbers.
    """
    step = max(_SMALLEST, (1 << count.bit_length()) // (2 * _SIZES))
    return -(-count // step) * step


def reduced_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x · weightᵀ + bias`` in float32, the product in the weight's precision.

    Args:
        x: float32 ``[..., inputs]``.
        weight: ``[outputs, inputs]`` in bf16; it gets no gradient.
        bias: float32 ``[outputs]``, or None.
    """
    y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], y.shape[-1])


class ReducedProduct(nn.Module):
    """The part of a frozen layer's class that is ours: in training its copy multiplies."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, ``[..., outputs]``, in its input's dtype."""
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        original, copy = self.__dict__[_COPY]
        # Another weight stands there while a layer is called with its deltas, or merged.
        if not self.training or self.weight is not original or x.dtype != original.dtype:
            y: Tensor = super().forward(*args, **kwargs)
            return y
        bias: Any = self.bias
        return reduced_product(x, copy, bias)


class ReducedLinear(ReducedProduct, nn.Linear):
    """``nn.Linear`` so."""


class ReducedConv1D(ReducedProduct, Conv1D):
    """transformers' ``Conv1D`` so."""


_reduced_classes: dict[type, type[nn.Module]] = {nn.Linear: ReducedLinear, Conv1D: ReducedConv1D}


def _reduced_class(original: type[nn.Module]) -> type[nn.Module]:
    if original not in _reduced_classes:
        kind = ReducedLinear if issubclass(original, nn.Linear) else ReducedConv1D
        # In Python's order of lookup ours comes right before nn.Linear: behind the class of an
        # adapted layer, whose base product it then is.
        made = type(f"Reduced{original.__name__}", (original, kind), {})
        _reduced_classes[original] = made
    return _reduced_classes[original]


def frozen_products(model: nn.Module, outside: Collection[nn.Module] = ()) -> list[nn.Module]:
    """Return the layers whose product with a frozen float32 weight can be reduced.

    They are the linear layers in the model's repeated blocks, those that carry an adapter
    included; not such as compute something of their own, nor quantised ones.

    Args:
        model: any module.
        outside: blocks that are left out.
    """
    left_out = {module for block in outside for module in block.modules()}
    inside = dict.fromkeys(
        module
        for stack in repeated_blocks(model)
        for block in stack.blocks
        for module in model.get_submodule(block).modules()
    )
    return [module for module in inside if module not in left_out and _is_frozen_product(module)]


def _is_frozen_product(module: nn.Module) -> bool:
    if not is_matrix(module) or "forward" in module.__dict__:
        return False
    try:
        plain = view_of(module).plain
    except DeltafitError:  # lazy, computed from other tensors, or quantised by another library
        return False
    weight: Any = module.weight
    return plain and weight.dtype == torch.float32 and not weight.requires_grad


@contextmanager
def reduced_products(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16, *, outside: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Let frozen layers multiply in ``dtype`` while they are in training mode.

    Each takes a copy of its weight in ``dtype``, made here, and gives float32. The weights
    themselves stay, so that evaluation inside the context is float32 to the bit. When the context
    ends, the model is what it was.

    Args:
        model: any module; it may carry adapters, and run packed or with gradient checkpointing.
        dtype: of the products.
        outside: blocks that are left out, such as those of a frozen prefix.
    """
    products = frozen_products(model, outside)
    classes = [type(module) for module in products]
    try:
        for module, kind in zip(products, classes, strict=True):
            copy = view_of(module).view().detach().to(dtype)
            module.__dict__[_COPY] = (module.weight, copy)
            module.__class__ = _reduced_class(kind)
        yield
    finally:
        for module, kind in zip(products, classes, strict=True):
            module.__class__ = kind
            module.__dict__.pop(_COPY, None)


def check_products(
    model: nn.Module, batch: Mapping[str, Tensor], *, outside: Collection[nn.Module] = ()
) -> str | None:
    """Return None if reduced products give the same but for rounding, and else a sentence.

    One batch runs both ways; compared are what leaves the model's last block, and the gradients of
    the trainable parameters. Gradients, modes and the state of torch's CPU generator are as before.

    Args:
        model: with repeated blocks; outside of ``reduced_products``.
        batch: its keywords.
        outside: as for ``reduced_products``.
    """
    with evaluating(model):
        for module in frozen_products(model, outside):
            module.training = True  # or they would not be reduced
        difference = rounding_difference(model, batch, partial(reduced_products, outside=outside))
    if difference <= LARGEST_ROUNDING:
        return None
    return (
        f"With its frozen products in bf16, {type(model).__name__} gives other states or gradients "
        f"than in float32 (they differ by {difference:.1g} of their size)."
    )


def rounding_difference(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    reduced: Callable[[nn.Module], AbstractContextManager[None]],
) -> float:
    """Return how far a batch's results differ inside a context, at most, as a share of their size.

    They are each token's state that leaves the last block, and of a weighted sum of these the
    gradients of all trainable parameters as one vector. Modules stay in the modes in which they
    are; what drops draws the same numbers both times. Gradients and the state of torch's CPU
    generator are as before.

    Args:
        model: with repeated blocks.
        batch: its keywords.
        reduced: the context.
    """
    last = model.get_submodule(main_stack(model).blocks[-1])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    left: list[Tensor] = []
    watch = last.register_forward_hook(lambda block, args, out: left.append(first_of(out)))

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model(**batch)
        states = left.pop().float()
        if not states.requires_grad:
            return states, states.new_zeros(1)
        gradients = torch.autograd.grad(
            weighted_sum(states), trainable, allow_unused=True, materialize_grads=True
        )
        return states.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])

    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            expected = run()
            with reduced(model):
                found = run()
    finally:
        watch.remove()
    # By token: the largest state of all may be an outlier, beside which everything is small.
    pairs = zip(expected, found, strict=True)
    return float(torch.stack([_distance(*pair).max() for pair in pairs]).max())


def _distance(expected: Tensor, found: Tensor) -> Tensor:
    """Return the distances of the vectors in the last dimension, as shares of their sizes."""
    tiny = torch.finfo(expected.dtype).tiny
    shares: Tensor = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=tiny)
    return shares
