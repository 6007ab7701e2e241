"""How the tokens of a padded batch lie on one packed sheet, and the way back."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from deltafit.engine.groups import CACHED_SQUARES, Group, WidenedGroup, cut_groups
from deltafit.errors import DeltafitError

Window = tuple[int, int]
EVERYTHING: Window = (-1, -1)
CAUSAL: Window = (-1, 0)


class CannotPackError(DeltafitError):
    """A model, or a call of it, that can only run padded; the sentence says why."""


class Layout:
    """Where each token of a right-padded batch lies on a sheet ``[1, tokens, ...]``.

    The rows stand on the sheet sorted by length, shortest first, and so those of a group side by
    side.

    Args:
        padded_shape: ``(rows, length)`` of the padded batch.
        groups: the sheet from its start to its end.
        places: int64 ``[tokens]``, where each token of the sheet stands in the flattened batch.
        window: how many tokens before it and behind it a token sees, -1 for all of them; None
            where the groups' masks say it otherwise.
    """

    def __init__(
        self,
        padded_shape: tuple[int, int],
        groups: tuple[Group, ...],
        places: Tensor,
        window: Window | None,
    ) -> None:
        self.padded_shape, self.groups, self.places = padded_shape, groups, places
        self.window = window
        self._tables: tuple[Tensor, ...] | None = None
        self._packed_tables: tuple[Tensor, ...] = ()
        self._widened: dict[int, tuple[Tensor, tuple[Group, ...]]] = {}

    @property
    def tokens(self) -> int:
        """The length of the sheet."""
        return len(self.places)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.groups[-1].length

    @cached_property
    def bounds(self) -> Tensor:
        """Int32 ``[rows + 1]``: where each row of the sheet begins, and where the last one ends."""
        sizes = (size for group in self.groups for size in group.lengths)
        starts = list(accumulate(sizes, initial=0))
        return torch.tensor(starts, dtype=torch.int32, device=self.places.device)

    @property
    def sheets(self) -> "tuple[Layout, ...]":
        """The layouts of what a block computes of the sheet: its own alone."""
        return (self,)

    def attended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, tuple[Group, ...]]:
        """Return keys, values and groups of what the sheet's tokens attend to: of themselves.

        Args:
            key: what a block's attention made of the sheet, ``[1, heads, tokens, width]``.
            value: the same.
        """
        return key, value, self.groups

    def with_virtual_tokens(self, keys: Tensor, values: Tensor) -> "Layout":
        """Return the layout with virtual tokens before each row's keys and values.

        Args:
            keys: theirs, ``[heads, count, width]``.
            values: the same.
        """
        return _WithVirtualTokens(self, keys, values)

    def widened(self, groups: tuple[Group, ...], count: int) -> tuple[Tensor, tuple[Group, ...]]:
        """Return how virtual tokens come before each row of keys; made once for all blocks.

        Args:
            groups: of the keys.
            count: virtual tokens.

        Returns:
            The places of all keys in order, among the virtual tokens and the sheet behind them;
            and the groups of what they make.
        """
        if count not in self._widened:
            device = self.places.device
            virtual, start, parts = torch.arange(count, device=device), count, []
            for length in (length for group in groups for length in group.lengths):
                parts += [virtual, torch.arange(start, start + length, device=device)]
                start += length
            wider = tuple(WidenedGroup(group, count) for group in groups)
            self._widened[count] = torch.cat(parts), wider
        return self._widened[count]

    def pack(self, padded: Tensor) -> Tensor:
        """Return ``[rows, length, ...]`` as ``[1, tokens, ...]``; one row may stand for all.

        Raises:
            CannotPackError: it has another shape.
        """
        rows, length = self.padded_shape
        if padded.ndim < 2 or padded.shape[0] not in (1, rows) or padded.shape[1] != length:
            raise CannotPackError(
                f"A block was given a tensor of shape {list(padded.shape)}, which is not that of "
                f"the batch, [{rows}, {length}, ...], so it cannot be packed."
            )
        flat = padded.expand(rows, *padded.shape[1:]).flatten(0, 1)
        return flat.index_select(0, self.places).unsqueeze(0)

    def pack_tables(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Pack tables of positions, once for all the blocks that are given the same ones."""
        if tables is not self._tables:
            self._tables, self._packed_tables = tables, tuple(map(self.pack, tables))
        return self._packed_tables

    def unpack(self, sheet: Tensor) -> Tensor:
        """Return ``[1, tokens, ...]`` as ``[rows, length, ...]``, with zeros for padding."""
        rows, length = self.padded_shape
        flat = sheet.new_zeros(rows * length, *sheet.shape[2:])
        filled: Tensor = flat.index_copy(0, self.places, sheet[0])
        return filled.view(rows, length, *sheet.shape[2:])


class _WithVirtualTokens(Layout):
    """A layout whose tokens attend to virtual ones as well."""

    def __init__(self, text: Layout, keys: Tensor, values: Tensor) -> None:
        # Without a window: one kernel for all rows would not ask what they attend to.
        super().__init__(text.padded_shape, text.groups, text.places, window=None)
        self._text, self._virtual = text, (keys, values)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, without virtual ones."""
        return self._text.longest

    def attended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, tuple[Group, ...]]:
        """Return keys, values and groups of what the sheet's tokens attend to."""
        *sheets, groups = self._text.attended(key, value)
        places, wider = self._text.widened(groups, self._virtual[0].shape[1])
        key, value = (
            torch.cat([virtual.unsqueeze(0), sheet], 2).index_select(2, places)
            for virtual, sheet in zip(self._virtual, sheets, strict=True)
        )
        return key, value, wider


def find_layout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Layout | None:
    """Return the layout among the arguments of a block or its part; None when it runs padded."""
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Layout)), None)


def layout_of(
    padding_mask: Tensor,
    *,
    causal: bool,
    window: Window | None = None,
    mask: Tensor | None = None,
) -> Layout | None:
    """Return the layout of a batch; None if a row is empty, or padded elsewhere than on the right.

    Args:
        padding_mask: bool ``[rows, length]``, true for tokens.
        causal: whether a token sees only itself and those before it.
        window: for any other sight than that or everything; see ``Layout``.
        mask: bool ``[rows, 1, length, length]``, for any that is no window either.
    """
    rows, length = padding_mask.shape
    device = padding_mask.device
    lengths = padding_mask.sum(1)
    order = lengths.argsort(stable=True)
    sizes = lengths[order].tolist()
    steps = torch.arange(length, device=device)
    if sizes[0] == 0 or not torch.equal(padding_mask, steps < lengths.unsqueeze(1)):
        return None

    def mask_of(start: int, stop: int) -> Tensor | None:
        longest = sizes[stop - 1]
        if window is not None:
            return band(longest, window, device)
        return None if mask is None else mask[order[start:stop], :, :longest, :longest]

    groups = tuple(
        Group(
            tuple(sizes[start:stop]),
            causal and sizes[stop - 1] > 1,
            mask_of(start, stop),
            device,
        )
        for start, stop in cut_groups(sizes, CACHED_SQUARES if device.type == "cpu" else None)
    )
    places = order.unsqueeze(1) * length + steps  # [rows, length]
    if window is None and mask is None:
        window = CAUSAL if causal else EVERYTHING
    return Layout((rows, length), groups, places[padding_mask[order]], window)


def band(length: int, window: Window, device: torch.device) -> Tensor:
    """Return bool ``[1, 1, length, length]``, true where a window lets a token see another."""
    steps = torch.arange(length, device=device)
    ahead = steps - steps.unsqueeze(1)
    before, behind = window
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if before >= 0:
        seen &= ahead >= -before
    if behind >= 0:
        seen &= ahead <= behind
    return seen[None, None]
