"""What ``ranks`` found, in words: which rank to ship, and which parts of ΔW carry the change."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from deltafit.experiments.rank_plot import OUTSIDE
from deltafit.experiments.rank_rows import (
    Dispensable,
    Measured,
    PartRow,
    RankRow,
    best_rank,
    smallest_rank,
    standing,
)
from deltafit.experiments.statistics import PairedComparison, holm, smallest_visible_difference
from deltafit.experiments.tables import format_bytes, format_metric, format_points
from deltafit.experiments.words import listing
from deltafit.prediction.certificates import DEFAULT_TOLERANCE

_NAMED = 8  # parts in a sentence
_PLURAL = {"block": "blocks", "matrix type": "kinds of matrices", "matrix": "matrices"}


def rank_verdict(folder: Path, rows: Sequence[RankRow], moved: float, model: str | None) -> str:
    """Say which rank is the smallest within noise of the best, how to get it, and what is open.

    Args:
        folder: the adapter's, as it was given.
        rows: of all ranks, compared; the lowest first.
        moved: how far the smallest such rank moves the canaries' logits.
        model: where the base was said to be, if it was.
    """
    best, chosen, whole = best_rank(rows), smallest_rank(rows), rows[-1]
    sentences = [_choice(chosen, best, whole)]
    if best is not whole:
        sentences.append(_lead(best, rows))
    if chosen is not best:
        sentences.append(_room(chosen))
    if chosen.rank == 0:
        sentences.append(
            "So these rows do not show that ΔW adds anything to the trained head: judge on more "
            "rows, or compare with a run of --method head."
        )
    elif chosen is not whole:
        sentences.append(f"Ship it with: {_command(folder, chosen.rank, moved, model)}")
    return " ".join(sentences)


def _choice(chosen: RankRow, best: RankRow, whole: RankRow) -> str:
    count = f"{len(best.measured.correct):,} rows"
    if chosen is best:
        result = f"is the best ({_percent(best.measured)} on {count})"
        if best.rank == 0:
            return f"Rank 0, the base with the trained head, {result}."
        less = f"; it is {_times(best, whole)} smaller than rank {whole.rank}"
        return (
            f"Rank {best.rank} {result}, and no smaller one is within noise of it"
            f"{': keep it' if best is whole else less}."
        )
    assert chosen.against_best is not None
    name, what = f"Rank {chosen.rank}", "the smallest within noise"
    if chosen.rank == 0:
        name, what = "Even rank 0, the base with the trained head,", "within noise"
    sizes = f"{format_bytes(chosen.stored_bytes)} and {format_bytes(whole.stored_bytes)}"
    return (
        f"{name} is {what} of the best, rank {best.rank}: {_percent(chosen.measured)} against "
        f"{_percent(best.measured)} on {count} ({_points(chosen.against_best)}), "
        f"{_times(chosen, whole)} smaller than rank {whole.rank} ({sizes})."
    )


def _times(row: RankRow, whole: RankRow) -> str:
    times = whole.stored_bytes / row.stored_bytes
    return f"{times:.{0 if times >= 10 else 1}f} times"


def _lead(best: RankRow, rows: Sequence[RankRow]) -> str:
    """Say whether a rank that does better than the whole adapter is better, or lucky."""
    corrected = holm([row.measured.against_whole.p_value for row in rows[:-1]])
    p_value = corrected[rows.index(best)]
    lead = best.measured.against_whole
    beyond = standing(lead, p_value) == "better"
    is_what = (
        "beyond noise" if beyond else f"no more than the best of {len(rows)} may have by chance"
    )
    return (
        f"Rank {best.rank}'s lead over the whole adapter, rank {rows[-1].rank}, is {is_what} "
        f"({_points(lead)})."
    )


def _room(chosen: RankRow) -> str:
    """Say how large a loss the rows would not show."""
    assert chosen.against_best is not None
    count = len(chosen.measured.correct)
    visible = smallest_visible_difference(count)
    least = "" if visible is None else f", and one under {100 * visible:.1f} points cannot show"
    return (
        f"On {count:,} rows a true loss of up to {-100 * chosen.against_best.low:.1f} points is "
        f"not ruled out{least}."
    )


def _command(folder: Path, rank: int, moved: float, model: str | None) -> str:
    words = ["deltafit", "truncate", str(folder), "--rank", str(rank)]
    words += ["--output", f"{folder}-rank{rank}"]
    if not moved <= DEFAULT_TOLERANCE:
        # Two digits, rounded up: what the canaries move by, and no more.
        digits = 1 - math.floor(math.log10(moved))
        words += ["--tolerance", f"{math.ceil(moved * 10**digits) / 10**digits:g}"]
    if model is not None:
        words += ["--model", model]
    return shlex.join(words)


def about_parts(
    kinds: Sequence[Sequence[PartRow]], dispensable: Sequence[Dispensable], head_alone: RankRow
) -> str:
    """Say of each kind of part which are needed, and which can be left out together.

    Args:
        kinds: the parts of each kind, what matters most first.
        dispensable: of each kind, where some can be left out.
        head_alone: the row of rank 0.
    """
    sentences = [_needed(rows) for rows in kinds]
    sentences += [
        _dispensed(one, next(rows for rows in kinds if rows[0].kind == one.parts[0].kind))
        for one in dispensable
    ]
    if kinds and head_alone.measured.against_whole.high >= 0:
        sentences.append(
            "As all of ΔW left out is within noise of the whole, these rows do not tell which "
            f"parts could be left out together ({_points(head_alone.measured.against_whole)})."
        )
    return " ".join(sentences)


def _needed(rows: Sequence[PartRow]) -> str:
    needed = [row for row in rows if row.standing == "worse"]
    if not needed:
        said = f"No single one of the {len(rows)} {_PLURAL[rows[0].kind]} is needed beyond noise"
        open_ones = [
            f"{row.title} ({_points(row.without.against_whole)})"
            for row in rows
            if row.standing == "undecided"
        ]
        return f"{said}; of {_listed(open_ones)} it is undecided." if open_ones else f"{said}."
    first = needed[0]
    said = f"Most needed of the {len(rows)} {_PLURAL[rows[0].kind]} is {first.title}: without its "
    said += f"ΔW accuracy changes by {_points(first.without.against_whole)}"
    more = [row.title for row in needed[1:]]
    return f"{said}; {_listed(more)} {_are(more)} needed beyond noise, too." if more else f"{said}."


def _dispensed(found: Dispensable, rows: Sequence[PartRow]) -> str:
    names = sorted((part.title for part in found.parts), key=_natural)
    share = 100 * sum(part.energy for part in found.parts)
    together = " together" if len(names) > 1 else ""
    return (
        f"The ΔW of {_listed(names)} can be left out{together} within noise "
        f"({_points(found.without.against_whole)}), {share:.0f} % of ‖ΔW‖²"
        f"{_next_run(found, rows)}."
    )


def _next_run(found: Dispensable, rows: Sequence[PartRow]) -> str:
    """Say by which flag a next run would leave the parts out, where a flag can."""
    dropped = {part.name for part in found.parts}
    kept = [row.name for row in rows if row.name not in dropped]
    if rows[0].kind == "block" and OUTSIDE not in kept:
        flag = "--layers " + ",".join(sorted(kept, key=int))
    elif rows[0].kind == "matrix type" and not any(
        name.endswith(f".{other}") for name in dropped for other in kept
    ):
        flag = "--target-modules " + ",".join(sorted(kept))
    else:
        return ""
    return f": a next run can do so with {flag}"


def _points(comparison: PairedComparison) -> str:
    return f"{format_points(vars(comparison))} points"


def _percent(figures: Measured) -> str:
    return f"{format_metric(figures.accuracy, 'accuracy')} %"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return listing([*names[:_NAMED], f"{more} more"] if more > 1 else names)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return what sorts "block 2" before "block 10"."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split()]
