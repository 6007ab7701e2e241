"""Which part of a tensor falls to each segment of a batch, and the parts put together again."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from deltafit.engine.layout import CannotPackError, Layout
from deltafit.errors import DeltafitError


@dataclass(frozen=True)
class Division(ABC):
    """How tensors of one leading shape fall to the segments.

    Attributes:
        counts: the segments' rows.
        one_for_all: whether one row stands for all of them, as that of positions does.
    """

    one_for_all: ClassVar[bool] = False

    counts: tuple[int, ...]

    def ordered(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` with each segment's places side by side, on its first dimension."""
        return tensor

    @abstractmethod
    def cut(self, ordered: Tensor) -> Sequence[Tensor]:
        """Return the part of each segment of what was computed of an ordered tensor."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what the segments made of their parts as one tensor, ordered as it came."""


@dataclass(frozen=True)
class _Rows(Division):
    """``[rows, ...]`` or ``[rows · length, ...]``: the segments lie one behind the other."""

    sizes: tuple[int, ...]  # places of each segment

    def cut(self, ordered: Tensor) -> Sequence[Tensor]:
        parts: Sequence[Tensor] = ordered.split(self.sizes)
        return parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(_of_one_width(parts, self.sizes))


@dataclass(frozen=True)
class _OneForAll(Division):
    """``[1, ...]``."""

    one_for_all = True

    def cut(self, ordered: Tensor) -> Sequence[Tensor]:
        return [ordered] * len(self.counts)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        rows = zip(parts, self.counts, strict=True)
        return torch.cat([part.expand(count, *part.shape[1:]) for part, count in rows])


@dataclass(frozen=True)
class _Sheet(_Rows):
    """``[tokens, ...]``, or ``[1, tokens, ...]``: rows sorted by length, whatever their segment."""

    order: Tensor | None  # [tokens], the sheet's tokens by segment; None where they lie so
    inverse: Tensor | None
    leading: bool = False

    def ordered(self, tensor: Tensor) -> Tensor:
        flat = tensor.squeeze(0) if self.leading else tensor
        if self.order is None:
            return flat
        ordered: Tensor = _Permuted.apply(flat, self.order, self.inverse)
        return ordered

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        if self.order is None:
            joined = super().join(parts)
        else:
            joined = _Joined.apply(self.order, self.sizes, *_of_one_width(parts, self.sizes))
        return joined.unsqueeze(0) if self.leading else joined


class Divisions:
    """Divides whatever is computed of a batch of some segments.

    Args:
        counts: the segments' rows.
    """

    def __init__(self, counts: tuple[int, ...]) -> None:
        self.counts, self.rows = counts, sum(counts)
        self._sheets: weakref.WeakKeyDictionary[Layout, _Sheet] = weakref.WeakKeyDictionary()

    def of(self, tensor: Tensor, layout: Layout | None) -> Division:
        """Return how ``tensor`` and all that is computed of it place by place is divided.

        Args:
            tensor: rows on its first dimension, or a sheet.
            layout: of the sheet, within packed blocks.

        Raises:
            DeltafitError: its shape does not tell.
        """
        shape = tensor.shape
        if layout is not None:
            # One row has sheets of one token, whose shape a longer sheet's first dimension has too;
            # but one row is of one segment, and so divided alike.
            for sheet in layout.sheets:
                if shape[:2] == (1, sheet.tokens):
                    return replace(self._sheet(sheet), leading=True)
                if shape[:1] == (sheet.tokens,):
                    return self._sheet(sheet)
            raise CannotPackError(
                f"A layer in a packed block was given a tensor of shape {list(shape)}, and not the "
                f"{layout.tokens} tokens of the batch, so that they cannot be told apart by "
                "adapter."
            )
        if shape[:1] == (1,):
            return _OneForAll(self.counts)
        if not shape or not shape[0] or shape[0] % self.rows:
            raise DeltafitError(
                f"A layer was given a tensor of shape {list(shape)}, whose first dimension is not "
                f"made of the {self.rows} rows of the batch, so that they cannot be told apart by "
                "adapter."
            )
        each = shape[0] // self.rows
        return _Rows(self.counts, tuple(count * each for count in self.counts))

    def _sheet(self, layout: Layout) -> _Sheet:
        if layout not in self._sheets:
            rows, length = layout.padded_shape
            if rows != self.rows:
                raise DeltafitError(
                    f"A packed batch has {rows} rows, and the segments have {self.rows}."
                )
            places = layout.places
            numbers = torch.arange(len(self.counts), device=places.device)
            rows_of = torch.tensor(self.counts, device=places.device)
            segments = numbers.repeat_interleave(rows_of)[places // length]
            sizes = tuple(segments.bincount(minlength=len(self.counts)).tolist())
            order = inverse = None
            if (segments.diff() < 0).any():
                order = segments.argsort(stable=True)
                inverse = order.argsort()
            self._sheets[layout] = _Sheet(self.counts, sizes, order, inverse)
        return self._sheets[layout]


class _Permuted(torch.autograd.Function):
    """``index_select`` by a permutation; torch's own adds row by row in its backward pass."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tensor.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0].index_select(0, *ctx.saved_tensors), None, None


class _Joined(torch.autograd.Function):
    """Each part's places where they came from. Concatenating first would fill memory twice."""

    @staticmethod
    def forward(ctx: Any, order: Tensor, sizes: tuple[int, ...], *parts: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.sizes = sizes
        joined = parts[0].new_empty(len(order), *parts[0].shape[1:])
        for places, part in zip(order.split(sizes), parts, strict=True):
            joined[places] = part
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return None, None, *upstream[0].index_select(0, order).split(ctx.sizes)


def _of_one_width(parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Return the segments' parts; a narrower one, of fewer labels, gets -inf on the right."""
    for part, size in zip(parts, sizes, strict=True):
        if part.shape[:1] != (size,):
            raise DeltafitError(
                f"A module made a tensor of shape {list(part.shape)} of {size} places, so that "
                "what it gives for several adapters cannot be put together."
            )
    width = max(part.shape[-1] for part in parts)
    return [
        part
        if part.shape[-1] == width
        else functional.pad(part, (0, width - part.shape[-1]), value=-torch.inf)
        for part in parts
    ]
