"""Bottleneck adapters: Houlsby et al., 2019 (arXiv:1902.00751), section 2.1; Pfeiffer et al., 2020.

The latter is "AdapterFusion" (arXiv:2005.00247), whose single adapters stand once in a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.checks import check_choice, check_whole
from deltafit.methods.insertion import BlockInsertion, BlockModules
from deltafit.methods.lora_start import random_factor

Variant = Literal["houlsby", "pfeiffer"]
Activation = Literal["gelu", "relu", "silu", "tanh"]
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Bottleneck(BlockInsertion):
    """h + W_up·f(W_down·h + b_down) + b_up, with h what a linear layer gives, token by token.

    W_down is ``[size, outputs]`` and starts at random; W_up, ``[outputs, size]``, and both biases
    start at zero, so that nothing changes at first. The layers end a block's attention or its
    feed-forward part: the adapters stand before the dropout, the residual and, in models that norm
    behind it, the norm. (Adapters in print stand behind that dropout; AdapterHub's "pfeiffer" also
    reads the residual's normed sum instead.) The model's own norms stay frozen.

    Args:
        layers: indices of the blocks to adapt; None for all.
        size: width of the bottleneck; at least 1.
        variant: ``"houlsby"``, behind attention and behind the feed-forward part; or
            ``"pfeiffer"``, behind the latter alone.
        activation: f: ``"gelu"``, ``"relu"``, ``"silu"`` or ``"tanh"``.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "bottleneck"
    result_name: ClassVar[str] = "bottleneck"
    summary: ClassVar[str] = (
        "small layers W_up·f(W_down·h) inserted into each block, and the head; does not merge"
    )
    # The middle one of those that Houlsby et al. swept, section 3.2.
    default_learning_rate: ClassVar[float] = 3e-4

    size_setting: ClassVar[str | None] = "size"

    size: int = 64
    variant: Variant = "houlsby"
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.size, "size")
        check_choice(self.variant, "variant", get_args(Variant))
        check_choice(self.activation, "activation", get_args(Activation))

    def places(self, modules: BlockModules) -> tuple[str, ...]:
        """Return the layers that end the feed-forward parts, and before them those of attention."""
        behind = modules.feed_forward_outputs()
        return (*modules.attention_outputs(), *behind) if self.variant == "houlsby" else behind

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return the two matrices and their biases; all but ``adapter_down`` are zero."""
        size = self.size
        down = random_factor("kaiming", (size, layer.outputs), size, generator_for("adapter_down"))
        return {
            "adapter_down": down,
            "adapter_down_bias": torch.zeros(size, dtype=torch.float64),
            "adapter_up": torch.zeros(layer.outputs, size, dtype=torch.float64),
            "adapter_up_bias": torch.zeros(layer.outputs, dtype=torch.float64),
        }

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y + W_up·f(W_down·y + b_down) + b_up`` in y's dtype."""
        down = tensors["adapter_down"]
        low = functional.linear(y.to(down.dtype), down, tensors["adapter_down_bias"])
        changed = functional.linear(
            _FUNCTIONS[self.activation](low), tensors["adapter_up"], tensors["adapter_up_bias"]
        )
        return y + changed.to(y.dtype)
