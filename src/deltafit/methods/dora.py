"""Weight-decomposed low-rank adaptation: Liu et al., "DoRA", 2024 (arXiv:2402.09353), section 4."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deltafit.methods.base import GeneratorFor, Layer, Tensors
from deltafit.methods.lora import LoRA, add_update, factors_of

MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class DoRA(LoRA):
    """W' = m · (W + s·B·A) / ‖W + s·B·A‖: LoRA turns each output's row, and m says how long it is.

    The norm is of a row of W as ``[outputs, inputs]`` (the paper's column: it writes W transposed),
    in an embedding of a feature over all tokens, as in PEFT; m starts as W's, so that Δ is zero at
    the start. The norm is taken for a constant in the backward pass (section 4.3). With dropout,
    only LoRA's part of the input is dropped. Merged, it costs nothing.

    Args and Raises: as ``LoRA``.
    """

    command_line_name: ClassVar[str] = "dora"
    result_name: ClassVar[str] = "dora"
    summary: ClassVar[str] = "LoRA for each row's direction, a number for its length, and the head"

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return LoRA's tensors and the magnitudes, ``[outputs]``."""
        norms = _rows(layer).detach().cpu().double().norm(dim=1)
        return {**super().initialise(layer, generator_for), MAGNITUDE: norms}

    def initialise_from(
        self, statistic: Tensors, layer: Layer, generator_for: GeneratorFor
    ) -> dict[str, Tensor]:
        """Return LoRA's tensors, and the lengths of the rows as those change them at the start."""
        tensors = super().initialise_from(statistic, layer, generator_for)
        if self.initialisation == "loftq":
            rows = _rows(layer).detach().cpu().double()
            started = rows + self.factor * tensors["lora_B"] @ tensors["lora_A"]
            tensors[MAGNITUDE] = started.norm(dim=1)
        return tensors

    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{"weight": m/‖W + s·B·A‖ · (W + s·B·A) - W}``."""
        weight = layer.view()
        turned = weight + super().deltas(layer, tensors)["weight"]
        inputs_at = 0 if layer.lookup else 1
        share = _share(tensors[MAGNITUDE], turned.detach().norm(dim=inputs_at))
        return {"weight": share.unsqueeze(inputs_at) * turned - weight}

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return the layer's output with W' in y's dtype, never forming it."""
        right, left = factors_of(tensors)
        share = _share(tensors[MAGNITUDE], _norms(_rows(layer), right, left, self.factor))
        scale = layer.by_feature(share.to(y.dtype))
        if layer.bias is None:
            base = y * scale
        else:  # it is no part of what is scaled
            bias = layer.by_feature(layer.bias.to(y.dtype))
            base = torch.addcmul(bias * (1 - scale), y, scale)
        scaled = right, share.unsqueeze(1) * left
        return add_update(layer, x, base, scaled, self.factor, self.dropout)

    def kept_tensors(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return LoRA's as they are saved, and the magnitudes."""
        return {**super().kept_tensors(layer, tensors), MAGNITUDE: tensors[MAGNITUDE]}


def _rows(layer: Layer) -> Tensor:
    """Return the weight as ``[outputs, inputs]``, of a lookup too."""
    return layer.view().T if layer.lookup else layer.view()


@torch.no_grad()
def _norms(weight: Tensor, right: Tensor, left: Tensor, factor: float) -> Tensor:
    """Return ``‖W + s·B·A‖`` of each row without forming it: W² + 2s·W·(B·A) + s²·(B·A)²."""
    weight = weight.to(left.dtype)
    squares = torch.linalg.vecdot(weight, weight)
    crossed = torch.linalg.vecdot(weight @ right.T, left)
    changed = torch.linalg.vecdot(left @ (right @ right.T), left)
    total: Tensor = squares + 2 * factor * crossed + factor**2 * changed
    return total.clamp_(min=0).sqrt_()


def _share(magnitude: Tensor, norms: Tensor) -> Tensor:
    """Return m/‖W + s·B·A‖; 1 for a row of zeros."""
    return torch.where(norms == 0, 1.0, magnitude / norms.clamp(min=torch.finfo(norms.dtype).tiny))
