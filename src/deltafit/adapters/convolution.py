"""Convolutions as methods see them: a matrix that multiplies what lies under the kernel."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltafit.adapters.module_view import ModuleView


def kernels_as_rows(tensor: Tensor) -> Tensor:
    """Return kernels, ``[rows, channels, *kernel]``, as rows; a matrix as it is."""
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


class ConvolutionView(ModuleView):
    """``nn.Conv1d`` and ``nn.Conv2d``: ``[outputs, inputs]``, inputs a group's channels · kernel.

    So B·A is a convolution with A's rows for kernels behind which B is one of width 1, and where
    the layer cuts its channels into groups, A's rows are the same for each of them and B's are each
    output's own. Stride, padding and its mode, and dilation are the layer's. Channels stand before
    the positions in what comes in and goes out.

    Attributes:
        dimensions: of the positions, 1 or 2.
        dilated: whether the kernel covers positions that are no neighbours.
        padding_mode: what it is padded with; None where it is not.
    """

    convolution = True

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Conv1d
        own = type(module)
        plain = own.forward is kind.forward and own._conv_forward is kind._conv_forward
        super().__init__(module, plain)
        self.groups, self.window = module.groups, math.prod(module.kernel_size)
        self.inputs = module.in_channels // module.groups * self.window
        self.outputs = module.out_channels
        self._convolution = module
        self.dimensions = len(module.kernel_size)
        self.dilated = any(
            size > 1 and step > 1
            for size, step in zip(module.kernel_size, module.dilation, strict=True)
        )
        padded = bool(sum(module._reversed_padding_repeated_twice))
        self.padding_mode = module.padding_mode if padded else None
        self._convolve: Callable[..., Tensor] = (
            functional.conv2d if kind is nn.Conv2d else functional.conv1d
        )

    def view(self) -> Tensor:
        """Return the weight as a matrix."""
        return self.parameter("weight").flatten(1)

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return the rows of ``view`` as kernels, ``[rows, channels of a group, *kernel]``."""
        return view.reshape(len(view), -1, *self._convolution.kernel_size)

    def by_feature(self, vector: Tensor) -> Tensor:
        """Return ``vector``, a number a channel, with a side of 1 for each of the positions'."""
        return vector.reshape(-1, *(1,) * self.dimensions)

    def products(self, x: Tensor) -> Tensor:
        """Return what lies under the kernel wherever it goes, for each group apart.

        Returns:
            ``[products, inputs]``.
        """
        one = torch.eye(self.inputs, dtype=x.dtype, device=x.device)
        channels = -1 - self.dimensions
        patches: Tensor = self.lowered(x, one).unflatten(channels, (self.groups, self.inputs))
        return patches.movedim(channels, -1).reshape(-1, self.inputs)

    def pointwise(self, left: Tensor) -> Tensor:
        """Return the rows of ``left`` as kernels that cover one position."""
        return left.reshape(*left.shape, *(1,) * self.dimensions)

    def lowered(self, x: Tensor, right: Tensor) -> Tensor:
        """Return ``right · x`` of each group: ``[..., groups · rank, *positions]``."""
        return self._product(x, right.repeat(self.groups, 1))

    def add_low_rank(
        self, y: Tensor, x: Tensor, right: Tensor, left: Tensor, factor: float
    ) -> Tensor:
        """Return ``y + factor · left · right · x`` in y's dtype."""
        left = factor * left  # the numbers are fewest there
        if self._is_product_cheaper(y, len(right)):
            change = self._product(x, left @ right)
        else:
            low = self.lowered(x, right)
            change = self._convolve(low, self.pointwise(left), groups=self.groups)
        return y + change.to(y.dtype)

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return ``matrix · x``, ``[..., rows, *positions]``, each group with its share of rows."""
        # What the layer's own forward calls, with all that it is set to.
        y: Tensor = self._convolution._conv_forward(x, self.to_parameter(matrix), None)
        return y
