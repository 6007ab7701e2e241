"""Linear layers whose frozen weight is stored in few bits and multiplied in full precision."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Quantisation = Literal["int8", "nf4"]


class _Product(torch.autograd.Function):
    """x·Ŵᵀ + b and dy·Ŵ; Ŵ is dequantised in each, so that no dense copy waits in between."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: "QuantisedLinear"
    ) -> Tensor:
        ctx.layer, ctx.weight, ctx.dtype = layer, weight, x.dtype
        return functional.linear(x, layer.dequantised(weight).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = upstream
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ ctx.layer.dequantised(ctx.weight).to(dy.dtype)).to(ctx.dtype)
        return dx, None, dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None, None


class QuantisedLinear(nn.Linear):
    """x ↦ Ŵx + b, where Ŵ ≈ W is stored in few bits and dequantised for each product.

    bitsandbytes quantises and dequantises. Its own layers are not used: in evaluation on a CPU
    they round the input too (8 bits), or compute in bf16 on processors that have it (4 bits), so
    that a model would evaluate as another than it trained, and prove itself on one machine alone.

    Its ``state_dict`` holds Ŵ as a plain layer's would be: what is saved from it loads anywhere.

    Attributes:
        kind: how the weight is stored.
        statistics: what dequantising takes beside the weight.
    """

    kind: ClassVar[Quantisation]
    statistics: Any

    def quantise(self) -> None:
        """Round the weight that stands here, of ``[outputs, inputs]``, and keep it in few bits."""
        stored, self.statistics = self._quantised(self.weight.detach().float().contiguous())
        # Always int8: T5 casts what it feeds a layer to the dtype of its weight, except to this.
        self.weight = nn.Parameter(stored.view(torch.int8), requires_grad=False)

    def _quantised(self, weight: Tensor) -> tuple[Tensor, Any]:
        """Return ``weight`` in few bits, and the statistics to read it by."""
        raise NotImplementedError  # each kind of storage has its own

    def dequantised(self, stored: Tensor) -> Tensor:
        """Return a stored weight in float32, ``[outputs, inputs]``."""
        raise NotImplementedError  # as ``_quantised``

    def dense(self) -> Tensor:
        """Return the layer's weight, ``[outputs, inputs]``; float32 unless another stands there."""
        weight = self.weight
        return weight if weight.is_floating_point() else self.dequantised(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., outputs]`` for ``x`` of ``[..., inputs]``, in its dtype."""
        # A dense weight stands there while the layer is called with its deltas, or merged.
        if self.weight.is_floating_point():
            return super().forward(x)
        y: Tensor = _Product.apply(x, self.weight, self.bias, self)
        return y

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "QuantisedLinear":
        super()._apply(fn, recurse)
        self.statistics = _moved(self.statistics, self.weight.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.dense().detach()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: Any, unexpected_keys: Any, error_msgs: list[str],
    ) -> None:  # fmt: skip
        # torch would cast the values to integers and say nothing.
        error_msgs.append(f"{prefix}weight is quantised. Load the values first, then quantise.")


class Int8Linear(QuantisedLinear):
    """Ŵ = W₈ · s / 127: 8 bits a weight, and for each output s = max |W|."""

    kind = "int8"

    def _quantised(self, weight: Tensor) -> tuple[Tensor, Any]:
        from bitsandbytes.functional import int8_vectorwise_quant

        # In half precision, as bitsandbytes' own layers do: its CUDA kernel takes nothing else.
        stored, largest, _ = int8_vectorwise_quant(weight.half())
        return stored, largest

    def dequantised(self, stored: Tensor) -> Tensor:
        """Return a stored weight in float32, ``[outputs, inputs]``."""
        from bitsandbytes.functional import int8_vectorwise_dequant

        dense: Tensor = int8_vectorwise_dequant(stored, self.statistics)
        return dense


class NF4Linear(QuantisedLinear):
    """4-bit NormalFloat with double quantisation (QLoRA, arXiv:2305.14314, section 3).

    Each block of 64 weights is divided by its largest |W|, and rounded to the nearest of 16
    quantiles of a normal distribution; the blocks' largest values are themselves stored in 8 bits.
    """

    kind = "nf4"

    def _quantised(self, weight: Tensor) -> tuple[Tensor, Any]:
        from bitsandbytes.functional import quantize_4bit

        return quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")

    def dequantised(self, stored: Tensor) -> Tensor:
        """Return a stored weight in float32, ``[outputs, inputs]``."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(stored.view(torch.uint8), self.statistics)


def _moved(statistics: Any, device: torch.device) -> Any:
    moved = statistics.to(device)
    return statistics if moved is None else moved  # bitsandbytes' own move in place
