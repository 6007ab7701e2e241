"""Rank × α: which cells of a grid of runs are as good as the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from deltafit.experiments.drawing import GREY, ORANGE, Span
from deltafit.experiments.page_parts import Table
from deltafit.experiments.plots import value_of
from deltafit.experiments.tables import (
    NOTHING,
    Row,
    format_metric,
    is_best,
    metric_title,
    outcome_of,
)
from deltafit.methods.values import write

_AXES = ("rank", "alpha")
Cells = dict[tuple[int, float], Row]
Settings = Mapping[tuple[str, str], Any]  # by whose it is, the method's or the run's, and its name


@dataclass(frozen=True)
class Grid:
    """Runs of one method that differ in rank and α alone.

    Attributes:
        method: its name.
        apart: what tells it from other grids of that method, such as "learning_rate=0.0001"; empty
            where there is no other.
        ranks: in order.
        alphas: in order.
        cells: rows by rank and α; some may be missing.
    """

    method: str
    apart: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    cells: Cells

    @property
    def title(self) -> str:
        """What it is of: "lora, learning_rate=0.0001"."""
        return ", ".join(filter(None, (self.method, self.apart)))


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Return the grids among judged rows: two ranks and two α at least, most cells of them run.

    Rows that differ in anything else, a setting of the method or a hyperparameter, stand in grids
    of their own, so that every cell has one row. What a search has chosen makes no such difference:
    each row was given its own. A row whose rank or α was searched is in no grid.

    Args:
        rows: with their method's ``settings``, and their hyperparameters that differ as ``varied``.
    """
    families: dict[str, list[tuple[Settings, Cells]]] = {}
    for row in rows:
        settings, searched = row.get("settings") or {}, row.get("searched") or ()
        if all(axis in settings and axis not in searched for axis in _AXES):
            place, others = (settings["rank"], settings["alpha"]), _others(row)
            alike = families.setdefault(repr(sorted(others.items())), [])
            # Of rows alike but for what a search chose, the second is in a grid of its own.
            free = next((cells for _, cells in alike if place not in cells), None)
            if free is None:
                alike.append((others, {place: row}))
            else:
                free[place] = row
    found = [(others, cells) for alike in families.values() for others, cells in alike]
    found = [(others, cells) for others, cells in found if _is_grid(cells)]
    apart = _told_apart([others for others, _ in found])
    return [
        Grid(str(others["method", "method"]), said, *_sides(cells), cells)
        for said, (others, cells) in zip(apart, found, strict=True)
    ]


def _sides(cells: Cells) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the ranks and the α of cells, in order."""
    return tuple(sorted({rank for rank, _ in cells})), tuple(sorted({alpha for _, alpha in cells}))


def _is_grid(cells: Cells) -> bool:
    ranks, alphas = map(len, _sides(cells))
    return min(ranks, alphas) > 1 and 2 * len(cells) > ranks * alphas


def _others(row: Row) -> Settings:
    """Return the settings of a row besides rank and α that nobody searched for."""
    of_run = {**(row.get("varied") or {}), "learning_rate": row.get("learning_rate")}
    both = [("method", row["settings"]), ("run", of_run)]
    known = {(whose, name): value for whose, of in both for name, value in of.items()}
    left_out = {*_AXES, *(row.get("searched") or ())}
    return {key: value for key, value in known.items() if key[1] not in left_out}


def _told_apart(found: Sequence[Settings]) -> list[str]:
    """Say of each what others of its method have otherwise."""
    said = []
    for others in found:
        alike = [each for each in found if each["method", "method"] == others["method", "method"]]
        differing = [
            key for key, value in others.items() if any(each.get(key) != value for each in alike)
        ]
        said.append(", ".join(f"{name}={write(others[whose, name])}" for whose, name in differing))
    return said


def mark_of(row: Row) -> str:
    """Return "best", "tie" of what is within noise of it, "undecided", or "" of what is worse."""
    if is_best(row):
        return "best"
    outcome = outcome_of(row["difference"])
    return {"within noise": "tie", "undecided": "undecided"}.get(outcome, "")


def _shown(row: Row, between: str) -> str:
    result = format_metric(row["after"], row["metric_name"])
    return between.join(filter(None, (result, mark_of(row))))


def grid_table(grid: Grid) -> Table:
    """Return a grid's results with their marks: a line a rank, a column an α."""
    lines = [
        [
            f"rank {rank}",
            *(
                _shown(grid.cells[rank, alpha], " ") if (rank, alpha) in grid.cells else NOTHING
                for alpha in grid.alphas
            ),
        ]
        for rank in grid.ranks
    ]
    records = [
        {
            **{"name": row["name"], "rank": rank, "alpha": alpha, "metric": row["metric_name"]},
            **{"after": row["after"], "mark": mark_of(row)},
        }
        for (rank, alpha), row in grid.cells.items()
    ]
    title = metric_title(list(grid.cells.values()))
    return Table([title, *(f"α {alpha:g}" for alpha in grid.alphas)], lines, records)


def span_of(found: Sequence[Grid]) -> Span:
    """Return the lowest and the highest result of grids, in the unit of the result axis."""
    values = [value_of(row) for grid in found for row in grid.cells.values()]
    return min(values), max(values)


def grid_plot(grid: Grid, span: Span) -> Figure:
    """Draw the results of a grid as shades and figures; the best and its ties are framed.

    What is undecided has a dashed frame, and what is worse none.

    Args:
        grid: of judged rows that were compared with the best.
        span: of the shades, the same for grids that stand side by side.
    """
    shape = len(grid.ranks), len(grid.alphas)
    table = np.full(shape, np.nan)
    for (rank, alpha), row in grid.cells.items():
        table[grid.ranks.index(rank), grid.alphas.index(alpha)] = value_of(row)
    figure = Figure(figsize=(2.4 + 1.05 * shape[1], 1.6 + 0.62 * shape[0]), layout="constrained")
    axes = figure.subplots()
    low, high = span
    image = axes.imshow(table, cmap="Blues", vmin=low, vmax=max(high, low + 0.01), aspect="auto")
    for y, x in np.argwhere(np.isnan(table)):
        axes.text(x, y, NOTHING, ha="center", va="center", color=GREY)
    for (rank, alpha), row in grid.cells.items():
        y, x = grid.ranks.index(rank), grid.alphas.index(alpha)
        colour = "white" if table[y, x] > low + 0.6 * (high - low) else "black"
        axes.text(x, y, _shown(row, "\n"), ha="center", va="center", color=colour, fontsize=9)
        if mark_of(row):
            frame = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=ORANGE)
            frame.set_linewidth(3 if is_best(row) else 1.8)
            frame.set_linestyle("--" if mark_of(row) == "undecided" else "-")
            axes.add_patch(frame)
    axes.set_xticks(range(shape[1]), [f"{alpha:g}" for alpha in grid.alphas])
    axes.set_yticks(range(shape[0]), [str(rank) for rank in grid.ranks])
    axes.set_xlabel("α")
    axes.set_ylabel("rank")
    bar = figure.colorbar(image, ax=axes, ticks=MaxNLocator(4))
    bar.set_label(metric_title(list(grid.cells.values())))
    return figure
