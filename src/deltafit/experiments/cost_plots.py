"""Plots of results against what they cost, with the Pareto front. Figures without global state."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from deltafit.experiments.drawing import Span, broken_panels, clean, panel_sizes, wrapped
from deltafit.experiments.page_parts import Table
from deltafit.experiments.pareto import pareto_front
from deltafit.experiments.plots import (
    BROKEN,
    COLOUR_OF_KIND,
    LINE,
    MARKER_OF_KIND,
    legend_of_kinds,
    lies_within,
    line_count,
    result_parts,
    result_ticks,
    value_of,
)
from deltafit.experiments.tables import (
    Row,
    cells_of,
    format_metric,
    headers_of,
    is_best,
    metric_title,
    share_of,
)

# From the middle of the label's left side to its point.
_LEADER = {"arrowstyle": "-", "relpos": (0, 0.5), "alpha": 0.35, "linewidth": 0.8}
_FRONT: dict[str, Any] = {
    **{"color": "#555555", "linewidth": 1.2, "drawstyle": "steps-post", "zorder": 1},
    "label": "Pareto front: nothing gets more for less",
}


@dataclass(frozen=True)
class Cost:
    """What a result is drawn against.

    Attributes:
        name: as a sentence has it.
        title: of the axis, with its unit.
        of: a row's, in that unit; None where it is not known or nothing.
        column: of the table of rows that shows it.
        logarithmic: whether the axis always is; else where the largest is ten times the smallest.
        limit: the largest there can be.
    """

    name: str
    title: str
    of: Callable[[Row], float | None]
    column: str
    logarithmic: bool = False
    limit: float = math.inf


def _share(row: Row) -> float | None:
    """Return the share of parameters trained, in per cent."""
    return 100.0 * row["trainable"] / row["total"] if row.get("trainable") else None


SHARE = Cost(
    name="the share of parameters trained",
    title="share of parameters trained, %",
    of=_share,
    column="share",
    logarithmic=True,
    limit=100.0,
)
TIME = Cost(
    name="training time",
    title="training time, seconds",
    of=lambda row: row.get("seconds") or None,
    column="time",
)
MEMORY = Cost(
    name="peak memory",
    title="peak memory, GB",
    of=lambda row: (row.get("peak_memory_bytes") or 0) / 1e9 or None,
    column="memory",
)
COSTS = (SHARE, TIME, MEMORY)


def cost_plot(rows: Sequence[Row], cost: Cost = SHARE) -> Figure:
    """Draw results against a cost, with the Pareto front; methods of unknown cost are lines.

    The axis of results is broken where some far from all others would squash these. Markers of
    methods worse than the best beyond noise are hollow.

    Args:
        rows: of the comparison, all of them judged; at least one with that cost.
        cost: of the methods.
    """
    parts = result_parts(rows, [(value_of(row), value_of(row)) for row in rows])
    groups = [[row for row in rows if lies_within(row, part)] for part in parts]
    needed = [sum(_label_height(row) for row in group) for group in groups]
    sizes = panel_sizes(needed)
    # Every part is as high as its labels need, one above the other.
    room = max(3.2, *(need / size for need, size in zip(needed, sizes, strict=True)))
    figure = Figure(figsize=(9, 1.6 + room), layout="constrained")
    panels = broken_panels(figure, "y", parts, sizes)
    logarithmic = _lay_out_costs(panels[0], rows, cost)
    front = _front(rows, cost)
    for axes, group, size in zip(panels, groups, sizes, strict=True):
        axes.yaxis.set_major_locator(result_ticks(size))
        clean(axes, "both")
        limits = axes.get_ylim()
        places = [(cost.of(row), value_of(row)) for row in front]
        axes.plot(*zip(*places, strict=True), **_FRONT)
        axes.set_ylim(limits)
        _draw_costs(axes, group, cost, front, room * size)
    scale = " (logarithmic)" if logarithmic else ""
    figure.supxlabel(f"{cost.title}{scale}", fontsize=10)
    broken = f"\n({BROKEN})" if len(parts) > 1 else ""
    figure.supylabel(f"{metric_title(rows)}{broken}", fontsize=10, ma="center")
    known = [bool(cost.of(row)) for row in rows if row["kind"] == "baseline"]
    style = "s" if all(known) else "s--" if any(known) else "--"
    styles = MARKER_OF_KIND | {"baseline": style}
    legend_of_kinds(figure, rows, styles, [Line2D([], [], **_FRONT)])
    return figure


def cost_table(rows: Sequence[Row]) -> Table:
    """Return the results with every cost, and a mark on those that lie on its Pareto front.

    Args:
        rows: of the comparison, all of them judged; at least one.
    """
    costs = [cost for cost in COSTS if any(cost.of(row) for row in rows)]
    fronts = {cost.column: [row["name"] for row in _front(rows, cost)] for cost in costs}
    titles = headers_of(rows)
    lines, records = [], []
    for row in rows:
        cells, on = cells_of(row), [c for c, names in fronts.items() if row["name"] in names]
        costs_of_row = [f"{cells[c]} (front)" if c in on else cells[c] for c in fronts]
        lines.append([cells["method"], cells["after"], *costs_of_row])
        records.append(
            {
                **{"name": row["name"], "metric": row["metric_name"], "after": row["after"]},
                **{"share": share_of(row), "seconds": row.get("seconds")},
                **{"peak_memory_bytes": row.get("peak_memory_bytes"), "on_front_of": on},
            }
        )
    return Table([titles[c] for c in ("method", "after", *fronts)], lines, records)


def _front(rows: Sequence[Row], cost: Cost) -> list[Row]:
    known = [row for row in rows if cost.of(row) is not None]
    points = [(cost.of(row) or 0.0, value_of(row)) for row in known]
    return [known[index] for index in pareto_front(points)]


def _lay_out_costs(axes: Axes, rows: Sequence[Row], cost: Cost) -> bool:
    """Give the axis of costs its scale and limits; say whether it is logarithmic."""
    known = [value for value in map(cost.of, rows) if value is not None]
    low, high = min(known), max(known)
    logarithmic = cost.logarithmic or high > 10 * low
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(*_decades(low, high, cost.limit))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        padding = 0.08 * (high - low) or 0.1 * high
        axes.set_xlim(low - padding, high + padding)
    return logarithmic


def _draw_costs(
    axes: Axes, rows: Sequence[Row], cost: Cost, front: Sequence[Row], room: float
) -> None:
    """Draw the rows of one panel, ``room`` inches high, and their labels beside it."""
    low, high = axes.get_ylim()
    wanted = [(value_of(row) - low) / (high - low) for row in rows]
    places = _spread(wanted, [_label_height(row) / room for row in rows])
    for row, place in zip(rows, places, strict=True):
        value, x, colour = value_of(row), cost.of(row), COLOUR_OF_KIND[row["kind"]]
        if x is None:
            axes.axhline(value, color=colour, linestyle="--", linewidth=1)
        else:
            worse = not is_best(row) and row["difference"]["beyond_noise"]
            fill = "white" if worse else colour
            marker = MARKER_OF_KIND[row["kind"]]
            axes.plot(x, value, marker, color=colour, clip_on=False, ms=6.5, markerfacecolor=fill)
        axes.annotate(
            _label(row) + ("  (front)" if row in front else ""),
            (axes.get_xlim()[1] if x is None else x, value),
            (1.03, place),
            textcoords=axes.transAxes,
            va="center",
            fontsize=8,
            color=colour,
            arrowprops=_LEADER | {"color": colour},
        )


def _label(row: Row) -> str:
    return f"{format_metric(row['after'], row['metric_name'])}  {wrapped(row['name'], 40)}"


def _label_height(row: Row) -> float:
    """Return how many inches the row's label in the plot of shares takes."""
    return 0.06 + 0.85 * LINE * line_count(_label(row))


def _decades(low: float, high: float, limit: float) -> Span:
    """Return powers of ten around what is drawn, the lower one clearly below."""
    first, last = math.floor(math.log10(low) - 0.1), math.ceil(math.log10(high))
    return 10.0**first, min(limit, 10.0 ** max(last, first + 1))


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Move labels in [0, 1] apart so that none covers another, keeping their order.

    Args:
        wanted: where the middle of each label would best be.
        heights: of the labels; together at most 1.
    """
    order = np.argsort(wanted, kind="stable")
    places, halves = np.array(wanted)[order], np.array(heights)[order] / 2
    below = 0.0  # where the label beneath ends
    for index, half in enumerate(halves):
        places[index] = max(places[index], below + half)
        below = places[index] + half
    above = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], above - halves[index])
        above = places[index] - halves[index]
    result = np.empty(len(places))
    result[order] = places
    return [float(place) for place in result]
