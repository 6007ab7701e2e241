"""How the estimates of runs look in a terminal, and what fits into a machine."""

from rich.console import Console
from rich.table import Table

from deltafit.cli.show import add_row, percent, say, table_of
from deltafit.experiments.estimate import Estimate, EstimatedRow
from deltafit.experiments.plan import Fits, PlannedRun
from deltafit.experiments.search import Search
from deltafit.experiments.tables import NOTHING, format_bytes, format_count, format_seconds
from deltafit.training.cost_law import Span

_SHOWN = 0.05  # of a run's time: smaller parts are not named


def show_estimate(console: Console, estimate: Estimate) -> None:
    """Print what each row of a recipe will take, what of, and all together."""
    recipe = estimate.recipe
    table = table_of(
        f"{recipe.name} on {recipe.model}",
        *("row", "runs", "trained", "share", "memory", "epoch", "training", "whole run"),
        left=("row",),
    )
    for row in estimate.rows:
        found = row.estimate
        add_row(
            table,
            row.name + (" (jointly)" if row.jointly else ""),
            str(row.runs),
            format_count(found.trainable),
            percent(found.trainable / found.total),
            format_bytes(found.memory),
            format_seconds(found.epoch.seconds or None),
            NOTHING if row.training is None else format_seconds(row.training.seconds or None),
            spread(found.whole),
        )
    console.print(table)
    for row in estimate.rows:
        if row.estimate.problem is not None:
            say(console, f"{row.name}: {row.estimate.problem} Its memory is foretold.")
    tried = [row for row in estimate.rows if row.estimate.problem is None]
    if tried:
        say(console, _made_of(max(tried, key=lambda row: row.estimate.whole.seconds)))
    say(console, f"{_together(estimate)} Memory: {format_bytes(estimate.memory)} at most.")
    if recipe.search is not None:
        say(console, _of_search(recipe.search))
    if tried:
        say(
            console,
            f"From {min(row.estimate.timed for row in tried)} timed steps of each kind of run"
            f"{'' if len(tried) == len(estimate.rows) else ' that could be tried'}; "
            "in brackets, if all went as the quickest or as the slowest of them.",
        )


def _together(estimate: Estimate) -> str:
    count = sum(row.runs for row in estimate.rows)
    runs = f"{count} run{'' if count == 1 else 's'} one after another"
    if estimate.whole is None or estimate.baselines is None:
        untried = sum(row.estimate.problem is not None for row in estimate.rows)
        rows = f"{untried} of {len(estimate.rows)} rows"
        return f"{runs}: not known, since {rows} could not be tried."
    return (
        f"{runs}, with the frozen features that cheap baselines read "
        f"({format_seconds(estimate.baselines.seconds)}): {spread(estimate.whole)}."
    )


def _of_search(search: Search) -> str:
    pruned = ", and as if none were pruned" if search.pruning != "none" else ""
    return (
        f"With {search.trials} trials of each row that is searched for, all of the size that it "
        f"has as it is written{pruned}."
    )


def spread(span: Span) -> str:
    """Return "4.2 min (4.0 min to 4.6 min)", a dash for nothing."""
    if not span.seconds:
        return NOTHING
    low, likely, high = map(format_seconds, (span.low, span.seconds, span.high))
    return likely if low == high else f"{likely} ({low} to {high})"


def _made_of(row: EstimatedRow) -> str:
    found = row.estimate
    parts = {
        name: span.seconds
        for name, span in found.parts.items()
        if span.seconds >= _SHOWN * found.whole.seconds
    }
    listed = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in parts.items())
    return f"A run of {row.name}, in {found.precision}: {listed}."


def show_fitting(console: Console, fits: Fits) -> None:
    """Print what keeps the limits, the best first, and what does not and why."""
    memory, seconds = fits.limits.memory, fits.limits.seconds
    limits = [
        *([] if memory is None else [f"{format_bytes(memory)} of memory"]),
        *([] if seconds is None else [format_seconds(seconds)]),
    ]
    if fits.fitting:
        table = _candidates(f"Fits into {' and '.join(limits)}, the best first", "also batches")
        for each in fits.fitting:
            add_row(table, *_cells(each), ", ".join(map(str, each.other_batches)) or NOTHING)
        console.print(table)
    else:
        say(console, f"Nothing of this fits into {' and '.join(limits)}.")
    if fits.others:
        table = _candidates("Does not fit", "too much")
        for each in fits.others:
            why = ", ".join(each.exceeded) or "not tried"
            add_row(table, *_cells(each), why)
        console.print(table)
    for name, problem in fits.problems.items():
        say(console, f"{name}: {problem}")
    say(
        console,
        "Best are those that leave the texts' tokens as they are, then the methods in the order "
        "in which they were asked for, larger ranks first; nothing here knows how well they learn. "
        "Memory counts with a tenth more, time with its upper end.",
    )


def _candidates(title: str, last: str) -> Table:
    columns = ("method", "trained", "length", "tokens kept", "batch", "memory", "time", last)
    return table_of(title, *columns, left=("method",))


def _cells(each: PlannedRun) -> tuple[str, ...]:
    return (
        str(each.method),
        format_count(each.trainable),
        str(each.max_length),
        f"{each.kept:.0%}",
        str(each.batch_size),
        format_bytes(each.memory),
        NOTHING if each.whole is None else spread(each.whole),
    )
