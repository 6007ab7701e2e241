"""Rank × α: which cells of a grid of runs are as good as the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from deltafit.experiments.drawing import ORANGE
from deltafit.experiments.plots import value_of
from deltafit.experiments.tables import Row, format_metric, is_best, metric_title

_AXES = ("rank", "alpha")


@dataclass(frozen=True)
class Grid:
    """Runs of one method that differ in rank and α alone.

    Attributes:
        method: its name.
        ranks: in order.
        alphas: in order.
        cells: rows by rank and α; some may be missing.
    """

    method: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    cells: dict[tuple[int, float], Row]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Return the grids among judged rows: two ranks and two α at least, most cells of them run."""
    families: dict[str, dict[tuple[int, float], Row]] = {}
    for row in rows:
        settings = row.get("settings") or {}
        if all(key in settings for key in _AXES):
            others = {key: value for key, value in settings.items() if key not in _AXES}
            place = settings["rank"], settings["alpha"]
            families.setdefault(repr(sorted(others.items())), {})[place] = row
    found = []
    for cells in families.values():
        ranks = tuple(sorted({rank for rank, _ in cells}))
        alphas = tuple(sorted({alpha for _, alpha in cells}))
        if min(len(ranks), len(alphas)) > 1 and 2 * len(cells) > len(ranks) * len(alphas):
            method = str(next(iter(cells.values()))["settings"]["method"])
            found.append(Grid(method, ranks, alphas, cells))
    return found


def mark_of(row: Row) -> str:
    """Return "best", "tie" of what is within noise of it, or "" of what is worse."""
    if is_best(row):
        return "best"
    return "tie" if row["difference"]["within_noise"] else ""


def grid_plot(grid: Grid) -> Figure:
    """Draw the results of a grid as shades and figures; the best and its ties are framed.

    Args:
        grid: of judged rows that were compared with the best.
    """
    shape = len(grid.ranks), len(grid.alphas)
    table = np.full(shape, np.nan)
    for (rank, alpha), row in grid.cells.items():
        table[grid.ranks.index(rank), grid.alphas.index(alpha)] = value_of(row)
    figure = Figure(figsize=(2.4 + 1.05 * shape[1], 1.6 + 0.62 * shape[0]), layout="constrained")
    axes = figure.subplots()
    low, high = np.nanmin(table), np.nanmax(table)
    image = axes.imshow(table, cmap="Blues", vmin=low, vmax=max(high, low + 0.01), aspect="auto")
    for (rank, alpha), row in grid.cells.items():
        y, x = grid.ranks.index(rank), grid.alphas.index(alpha)
        mark = mark_of(row)
        colour = "white" if table[y, x] > low + 0.6 * (high - low) else "black"
        text = format_metric(row["after"], row["metric_name"]) + (f"\n{mark}" if mark else "")
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=9)
        if mark:
            frame = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=ORANGE)
            frame.set_linewidth(3 if mark == "best" else 1.8)
            axes.add_patch(frame)
    axes.set_xticks(range(shape[1]), [f"{alpha:g}" for alpha in grid.alphas])
    axes.set_yticks(range(shape[0]), [str(rank) for rank in grid.ranks])
    axes.set_xlabel("α")
    axes.set_ylabel("rank")
    bar = figure.colorbar(image, ax=axes, ticks=MaxNLocator(4))
    bar.set_label(metric_title(list(grid.cells.values())))
    return figure
