"""Learned rescaling: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning ...", 2022.

arXiv:2205.05638, section 3.3: (IA)³, infused adapter by inhibiting and amplifying activations.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from deltafit.errors import DeltafitError, UsageError
from deltafit.methods.base import (
    GeneratorFor,
    Layer,
    Tensors,
)
from deltafit.methods.checks import EXPRESSION, check_names, means
from deltafit.methods.delta import DeltaMethod

VECTOR = "ia3_l"
# In BERT's family attention ends in an output.dense too, which is none of the three.
_OUTPUT = r"layer\.\d+\.output\.dense"
_BERT = rf"{EXPRESSION}.*\.(key|value|{_OUTPUT})"
_LLAMA = ("k_proj", "v_proj", "down_proj")
_FEEDFORWARD = (
    rf"{EXPRESSION}.*\.{_OUTPUT}",
    "lin2", "mlp.Wo", "mlp.c_proj", "dense_4h_to_h", "fc2", "down_proj",
)  # fmt: skip


@dataclass(frozen=True)
class IA3(DeltaMethod):
    """Keys, values and what enters the second feed-forward layer are multiplied by learned vectors.

    One vector l a layer: y = l ∘ (W·x + b), of ``[outputs]``, so that ΔW = (l - 1) ∘ W by rows and
    Δb = (l - 1) ∘ b; in a feed-forward part's second layer y = W·(l ∘ x) + b, of ``[inputs]``, so
    that ΔW = W ∘ (l - 1) by columns. l starts at one. A layer that holds queries too (GPT-2's
    ``c_attn``) has them scaled with the rest, as in PEFT.

    Args:
        target_modules: as of ``LoRA``; None for keys, values and the feed-forward parts' second
            layers, where the architecture is known.
        layers: indices of the blocks to adapt; None for all.
        trained_modules: modules trained and saved whole besides the head.
        feedforward_modules: which of the targets are scaled at their inputs: names (whole
            segments at the end), a regular expression, or None for the second feed-forward layers
            under the names that they have in the known architectures.

    Raises:
        UsageError: a value is out of its range.
    """

    command_line_name: ClassVar[str] = "ia3"
    result_name: ClassVar[str] = "ia3"
    summary: ClassVar[str] = (
        "(IA)³: a factor for each key, each value and each feed-forward unit, and the head"
    )
    default_learning_rate: ClassVar[float] = 3e-3  # section 3.5
    convolves: ClassVar[bool] = True
    default_targets: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
        "distilbert": ("k_lin", "v_lin", "lin2"),
        "deberta-v2": rf"{EXPRESSION}.*\.(key_proj|value_proj|{_OUTPUT})",
        "mpnet": rf"{EXPRESSION}.*\.(k|v|{_OUTPUT})",
        "modernbert": ("Wqkv", "mlp.Wo"),
        "gpt2": ("c_attn", "mlp.c_proj"),
        "gpt_neox": ("query_key_value", "dense_4h_to_h"),
        "opt": ("k_proj", "v_proj", "fc2"),
        **dict.fromkeys(
            ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA
        ),
    }

    feedforward_modules: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        modules = self.feedforward_modules
        if not isinstance(modules, str):
            check_names(modules or (), "feedforward_modules")
            return
        expression = modules.removeprefix(EXPRESSION)
        try:
            re.compile(expression)
        except re.error as error:
            raise UsageError(
                f"feedforward_modules is {expression!r}, which is no regular expression: {error}."
            ) from None
        object.__setattr__(self, "feedforward_modules", f"{EXPRESSION}{expression}")

    def patterns(self) -> tuple[str, ...]:
        """Return ``feedforward_modules`` as given."""
        given = self.feedforward_modules
        return (given,) if isinstance(given, str) else given or ()

    def for_module(self, module_name: str) -> "IA3":
        """Return the method with the module alone in ``feedforward_modules``, or none."""
        patterns = _FEEDFORWARD if self.feedforward_modules is None else self.patterns()
        own = any(means(pattern, module_name) for pattern in patterns)
        return replace(self, feedforward_modules=(module_name,) if own else ())

    @property
    def scales_inputs(self) -> bool:
        """Whether the method, as it applies to one module, scales what enters it."""
        return bool(self.feedforward_modules)

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return ``ia3_l``, ones of ``[outputs]``, or ``[inputs]`` where those are scaled.

        Of a convolution it is a number a channel.

        Raises:
            DeltafitError: the inputs of a lookup would be scaled, which has none.
        """
        if self.scales_inputs and layer.lookup:
            raise DeltafitError(
                f"{', '.join(self.patterns())} is an embedding, which has no input to scale. Leave "
                "it out of feedforward_modules: then what it gives is scaled."
            )
        channels = layer.inputs // layer.window * layer.groups
        size = channels if self.scales_inputs else layer.outputs
        return {VECTOR: torch.ones(size, dtype=torch.float64)}

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return Δ of the weight, and of the bias where outputs are scaled and there is one."""
        change = tensors[VECTOR] - 1
        weight = layer.view()
        if self.scales_inputs:
            # Each group's outputs see its own channels, and of each the values in the window.
            by_channel = weight.reshape(
                layer.groups, -1, layer.inputs // layer.window, layer.window
            )
            scaled = by_channel * change.view(layer.groups, 1, -1, 1)
            return {"weight": scaled.reshape(weight.shape)}
        # A lookup's view has its outputs in columns.
        deltas = {"weight": weight * (change if layer.lookup else change.unsqueeze(1))}
        if layer.bias is not None:
            deltas["bias"] = layer.bias * change
        return deltas

    def pre(self, layer: Layer, x: Tensor, tensors: Tensors) -> Tensor:
        """Return ``l ∘ x`` where inputs are scaled."""
        return self._scaled(layer, x, tensors) if self.scales_inputs else x

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``l ∘ y`` where outputs are scaled; ``pre`` did the rest."""
        return y if self.scales_inputs else self._scaled(layer, y, tensors)

    def _scaled(self, layer: Layer, features: Tensor, tensors: Tensors) -> Tensor:
        return (features * layer.by_feature(tensors[VECTOR])).to(features.dtype)
