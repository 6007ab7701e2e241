"""Which steps and passes a run is made of, and a fair sample of them."""

from collections.abc import Callable, Sequence

from deltafit.data import length_grouped
from deltafit.tasks.inference import BATCH_TOKENS
from deltafit.training.cost_law import Work, added, work_of
from deltafit.training.passes import cut_passes, steps_of
from deltafit.training.settings import TrainingSettings

_LOOKED_AT = 20_000  # steps, for the largest one


def step_work(
    rows: Sequence[int],
    lengths: Sequence[int],
    settings: TrainingSettings,
    *,
    packed: bool,
    longer: int = 0,
) -> Work:
    """Return the work of one step.

    Args:
        rows: of the step.
        lengths: tokens of each row of the whole data set.
        settings: the batch size.
        packed: whether it runs without padding.
        longer: tokens that the method adds to every text.
    """
    passes = cut_passes(rows, lengths, settings.batch_size, packed=packed)
    return work_of([[lengths[row] + longer for row in part] for part in passes], packed=packed)


def work_of_epochs(
    lengths: Sequence[int], settings: TrainingSettings, *, packed: bool, longer: int = 0
) -> list[Work]:
    """Return the work of each epoch of training; for the arguments see ``step_work``."""
    return [
        added(
            step_work(rows, lengths, settings, packed=packed, longer=longer)
            for rows in steps_of(len(lengths), settings, epoch)
        )
        for epoch in range(settings.epochs)
    ]


def evaluation_passes(lengths: Sequence[int]) -> list[list[int]]:
    """Return the rows of each pass of an evaluation."""
    return length_grouped(lengths, BATCH_TOKENS)


def passes_work(passes: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Work]:
    """Return the work of each pass of rows sorted by length, whose padding is little."""
    return [work_of([[lengths[row] for row in rows]], packed=False) for rows in passes]


def chosen_steps(
    lengths: Sequence[int], settings: TrainingSettings, count: int, *, packed: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Choose steps to warm up on and steps to time.

    The first to warm up on are the largest of the run, by tokens of a pass and by squares of
    lengths, since they make the peak of memory; the last one is of middling size. Timed are
    steps of the first epoch, one of each of ``count`` strata by tokens, in the run's order.

    Args:
        lengths: tokens of each training row.
        settings: of the run.
        count: how many to time.
        packed: whether it runs without padding.

    Returns:
        The rows of each step to warm up on, and to time; all of as many rows. Where the run has
        fewer steps, some are there several times.
    """
    size = min(settings.rows_per_step, len(lengths))
    first = [rows for rows in steps_of(len(lengths), settings, 0) if len(rows) == size]

    def tokens(rows: list[int]) -> float:
        return step_work(rows, lengths, settings, packed=packed)[1]

    ordered = sorted(range(len(first)), key=lambda index: tokens(first[index]))
    timed = sorted(in_strata(ordered, count))
    every = _some_epochs(lengths, settings, size)
    largest = [max(every, key=of) for of in _largest_passes(lengths, settings, packed=packed)]
    return [*largest, first[ordered[len(ordered) // 2]]], [first[index] for index in timed]


def in_strata(ordered: Sequence[int], count: int) -> list[int]:
    """Return ``count`` of ordered things, from the middle of as many equal parts."""
    return [ordered[int((part + 0.5) * len(ordered) / count)] for part in range(count)]


def _some_epochs(lengths: Sequence[int], settings: TrainingSettings, size: int) -> list[list[int]]:
    found: list[list[int]] = []
    for epoch in range(settings.epochs):
        found += [rows for rows in steps_of(len(lengths), settings, epoch) if len(rows) == size]
        if len(found) >= _LOOKED_AT:
            break
    return found


def _largest_passes(
    lengths: Sequence[int], settings: TrainingSettings, *, packed: bool
) -> list[Callable[[list[int]], float]]:
    """Return how steps are ordered by the tokens, and by the squares, of their largest pass."""

    def largest(place: int) -> Callable[[list[int]], float]:
        def of(rows: list[int]) -> float:
            passes = cut_passes(rows, lengths, settings.batch_size, packed=packed)
            each = ([[lengths[row] for row in part]] for part in passes)
            return max(work_of(part, packed=packed)[place] for part in each)

        return of

    return [largest(1), largest(2)]
