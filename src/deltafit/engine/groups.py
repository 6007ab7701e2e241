"""Rows of like length that attention takes together: fewer calls, for a little padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

# What one more group costs, in squares of padding (the scores of one token for one other, of all
# heads): about a fifth of a millisecond of small calls. Measured on MiniLM, forward and backward.
_COST_OF_A_GROUP = 3000
# Squares: what attention makes of more (scores, weights, gradients of both, for each head) leaves a
# processor's cache between one operation and the next. Measured on MiniLM with 256 tokens a row.
CACHED_SQUARES = 1 << 17


@dataclass(eq=False)
class Group:
    """Rows that stand side by side on the sheet, shortest first.

    Attributes:
        lengths: tokens of each row.
        causal: whether a token sees only itself and those before it.
        mask: bool ``[rows, 1, length, length]``, true where a token sees another, or one for all
            rows; None where ``causal`` and the lengths say it all.
        device: of the tensors made here; None is the CPU.
    """

    lengths: tuple[int, ...]
    causal: bool
    mask: Tensor | None
    device: torch.device | None = None

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Tokens of the longest."""
        return self.lengths[-1]

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(self.lengths)

    @property
    def even(self) -> bool:
        """Whether all rows have one length, so that the group is a view of the sheet."""
        return self.lengths[0] == self.lengths[-1]

    @cached_property
    def real(self) -> Tensor:
        """Bool ``[rows, length]``, true for tokens and false for padding."""
        return self._steps < self._tensor(self.lengths).unsqueeze(1)

    @cached_property
    def _places(self) -> Tensor:
        """Where each place of the padded group finds its token; padding finds its row's last."""
        starts = self._tensor((0, *self.lengths[:-1])).cumsum(0)
        last = self._tensor(self.lengths).unsqueeze(1) - 1
        return (starts.unsqueeze(1) + torch.minimum(self._steps, last)).flatten()

    @property
    def _steps(self) -> Tensor:
        return torch.arange(self.length, device=self.device)

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)

    @cached_property
    def _tokens_of_padded(self) -> Tensor:
        return self.real.flatten().nonzero().squeeze(1)

    @cached_property
    def seen(self) -> Tensor | None:
        """True where a token sees another, as torch's kernel takes it; None where it needs none.

        What comes of padding is dropped; it sees something all the same, or it would be NaN.
        """
        if self.even:
            return self.mask
        if self.mask is not None:
            real = self.real
            return (self.mask & real[:, None, None, :]) | ~real[:, None, :, None]
        # Behind a row's tokens, padding is hidden from them by what is causal.
        return None if self.causal else self.real[:, None, None, :]

    @cached_property
    def hidden(self) -> Tensor | None:
        """True where a token does not see another, or None."""
        if self.seen is not None:
            return ~self.seen
        if not self.causal:
            return None
        return self._steps > self._steps.unsqueeze(1)

    def padded(self, tokens: Tensor) -> Tensor:
        """Return ``[tokens, ...]`` as ``[rows, length, ...]``, padded with a row's last token."""
        if not self.even:
            tokens = tokens.index_select(0, self._places.to(tokens.device))
        return tokens.view(self.rows, self.length, *tokens.shape[1:])

    def unpadded(self, padded: Tensor) -> Tensor:
        """Return ``[rows, length, ...]`` as ``[tokens, ...]``."""
        flat = padded.flatten(0, 1)
        return flat if self.even else flat.index_select(0, self._tokens_of_padded.to(flat.device))


class WidenedGroup(Group):
    """Rows of keys with virtual tokens before each, which all tokens see.

    Args:
        text: the rows without them.
        count: virtual tokens a row.
    """

    def __init__(self, text: Group, count: int) -> None:
        lengths = tuple(count + length for length in text.lengths)
        super().__init__(lengths, False, None, text.device)
        self._text, self._count = text, count

    @cached_property
    def seen(self) -> Tensor | None:
        """True where a token sees another or a virtual one; None where it sees them all."""
        hidden = self._text.hidden
        if hidden is None:
            return None
        seen = ~hidden if hidden.ndim == 4 else ~hidden[None, None]
        return torch.cat([seen.new_ones(*seen.shape[:-1], self._count), seen], -1)


def cut_groups(sizes: Sequence[int], most: int | None = None) -> list[tuple[int, int]]:
    """Cut rows, sorted by length, into the groups that cost least: ``(start, stop)`` of each.

    Args:
        sizes: the lengths, shortest first.
        most: squares (rows · length²) that a group of several rows may hold; a larger one is cut
            into equal parts. None for any number.
    """
    # Rows of one length are never parted, so a group ends where the length changes.
    ends = [i + 1 for i in range(len(sizes)) if i + 1 == len(sizes) or sizes[i + 1] != sizes[i]]
    best: list[
        tuple[int, int]
    ] = []  # for each end: the least cost up to it, the start of its group
    for place, end in enumerate(ends):
        square = sizes[end - 1] ** 2
        best.append(
            min(
                (
                    (best[before][0] if before >= 0 else 0)
                    + _COST_OF_A_GROUP
                    + (end - (ends[before] if before >= 0 else 0)) * square,
                    ends[before] if before >= 0 else 0,
                )
                for before in range(-1, place)
            )
        )
    cuts: list[tuple[int, int]] = []
    end = len(sizes)
    while end:
        start = best[ends.index(end)][1]
        cuts.insert(0, (start, end))
        end = start
    if most is None:
        return cuts
    return [
        part for start, stop in cuts for part in _parts(start, stop, most // sizes[stop - 1] ** 2)
    ]


def _parts(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """Cut rows into parts of at most ``rows``, or of one, as equal as can be."""
    at_once = max(1, rows)
    count = -(-(stop - start) // at_once)
    bounds = [start + (stop - start) * part // count for part in range(count + 1)]
    return list(pairwise(bounds))
