"""Frozen tensors that an adapter's layers share."""

from collections.abc import Mapping

import torch
from torch import Tensor


class SharedTensors:
    """One copy for all layers, on each device and in each dtype that they compute in.

    They are no parameters of a module: that would be a copy a layer as soon as the model moves.

    Args:
        tensors: by name, on the CPU.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self._placed: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def beside(self, tensor: Tensor) -> Mapping[str, Tensor]:
        """Return them on the device of ``tensor`` and in its dtype."""
        place = tensor.device, tensor.dtype
        if place not in self._placed:
            # What inference mode makes could not be trained with later.
            with torch.inference_mode(False):
                self._placed[place] = {n: t.to(*place) for n, t in self.tensors.items()}
        return self._placed[place]

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Put other values, of the same names, in their place."""
        self.tensors, self._placed = dict(tensors), {}
