"""How the rows of one optimiser step are cut into forward passes."""

from collections.abc import Sequence

# A cut must save this share of a pass's tokens, and this many: every pass has a cost of its own.
_LEAST_SHARE = 0.2
_LEAST_TOKENS = 32
# More tokens in a packed pass are no faster, and what it keeps for the backward pass grows with
# them. A single text may be longer.
_MOST_PACKED_TOKENS = 2048


def cut_passes(
    rows: Sequence[int], lengths: Sequence[int], largest: int, *, packed: bool = False
) -> list[list[int]]:
    """Cut a step's rows into passes of texts of like length, so that little of them is padding.

    What a step learns does not depend on it: its gradient is that of the mean loss over all its
    rows. (Dropout draws other masks, of the same distribution.)

    Args:
        rows: indices of the step's rows.
        lengths: tokens of each row of the whole data set.
        largest: the most rows in a pass.
        packed: the model runs without padding, so that passes are cut by their tokens alone.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    parts = [ordered[start : start + largest] for start in range(0, len(ordered), largest)]
    cut = _cut_by_tokens if packed else _cut
    return [piece for part in parts for piece in cut(part, lengths)]


def _cut_by_tokens(rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    pieces: list[list[int]] = []
    room = 0
    for row in rows:
        if lengths[row] > room:
            pieces.append([])
            room = _MOST_PACKED_TOKENS
        pieces[-1].append(row)
        room -= lengths[row]
    return pieces


def _cut(rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut rows sorted by length, longest first, wherever that saves enough padding."""
    longest = lengths[rows[0]]
    # Cut before row i, and the rows from there on are padded to its length alone.
    saved = {i: (longest - lengths[rows[i]]) * (len(rows) - i) for i in range(1, len(rows))}
    best = max(saved, key=saved.__getitem__, default=0)
    if not best or saved[best] < max(_LEAST_SHARE * longest * len(rows), _LEAST_TOKENS):
        return [rows]
    return [*_cut(rows[:best], lengths), *_cut(rows[best:], lengths)]
