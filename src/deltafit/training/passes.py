"""Which rows each optimiser step takes, and how they are cut into forward passes."""

from collections.abc import Sequence

from deltafit.data import epoch_order
from deltafit.training.settings import TrainingSettings

# A cut must save this share of a pass's tokens, and this many: every pass has a cost of its own.
_LEAST_SHARE = 0.2
_LEAST_TOKENS = 32
# More tokens in a packed pass are no faster, and what it keeps for the backward pass grows with
# them. A single text may be longer.
_MOST_PACKED_TOKENS = 2048

Part = tuple[str, list[int]]


def steps_of(count: int, settings: TrainingSettings, epoch: int) -> list[list[int]]:
    """Return the rows of each optimiser step of an epoch, as `Learner` takes them.

    Args:
        count: training rows.
        settings: batch size, accumulation and seed.
        epoch: 0 for the first.
    """
    order, size = epoch_order(count, settings.seed, epoch), settings.rows_per_step
    return [order[start : start + size] for start in range(0, count, size)]


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


def join_passes(
    parts: Sequence[Part], lengths: Sequence[int], budget: int, *, packed: bool = False
) -> list[list[Part]]:
    """Put passes of several runs on one model together, up to a number of tokens.

    A part is never cut, so that it may be larger than the budget by itself. Padded, parts stay
    apart where a cut between them would be worth it; see ``cut_passes``.

    Args:
        parts: the run, and the rows of one of its passes, for each of them.
        lengths: tokens of each row of the whole data set.
        budget: the most tokens in a pass, padding included.
        packed: the model runs without padding.
    """

    def tokens(group: Sequence[Part]) -> int:
        own = [lengths[row] for _, rows in group for row in rows]
        return sum(own) if packed else len(own) * max(own)

    def fits(group: list[Part], part: Part) -> bool:
        together = tokens([*group, part])
        saved = together - tokens(group) - tokens([part])
        return together <= budget and saved < max(_LEAST_SHARE * together, _LEAST_TOKENS)

    joined: list[list[Part]] = []
    # The longest first: what follows is of like length.
    for part in sorted(parts, key=lambda part: -max(lengths[row] for row in part[1])):
        group = next((group for group in joined if fits(group, part)), None)
        if group is None:
            joined.append([part])
        else:
            group.append(part)
    return joined
