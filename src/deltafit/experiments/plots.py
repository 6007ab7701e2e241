"""Plots of a comparison, as matplotlib figures without global state."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from deltafit.experiments.drawing import (
    BLUE,
    ORANGE,
    Span,
    axis_parts,
    broken_panels,
    clean,
    panel_sizes,
    wrapped,
)
from deltafit.experiments.tables import (
    PERCENT_METRICS,
    Row,
    format_metric,
    metric_title,
)

COLOUR_OF_KIND = {"run": BLUE, "baseline": ORANGE}
MARKER_OF_KIND = {"run": "o", "baseline": "s"}

LINE = 0.17  # inches that a line of a label takes, with what keeps it from the next
BROKEN = "the axis is broken; its parts differ in scale"


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG of 150 dots per inch."""
    figure.savefig(path, format="png", dpi=150)


def accuracy_plot(rows: Sequence[Row]) -> Figure:
    """Draw each method's result with its 95 % interval, in the order of the rows.

    The axis is broken where results far from all others would squash these.

    Args:
        rows: of the comparison, all of them judged; at least one.
    """
    names = [wrapped(row["name"]) for row in rows]
    height = max(0.42, 0.1 + LINE * max(line_count(name) for name in names))
    figure = Figure(figsize=(8.5, 1.4 + height * len(rows)), layout="constrained")
    parts = result_parts(rows, [_interval(row) for row in rows])
    groups = [[row for row in rows if lies_within(row, part)] for part in parts]
    sizes = panel_sizes([len(group) for group in groups])
    panels = broken_panels(figure, "x", parts, sizes)
    for axes, group, size in zip(panels, groups, sizes, strict=True):
        for row in group:
            place, colour = rows.index(row), COLOUR_OF_KIND[row["kind"]]
            axes.plot(_interval(row), [place, place], color=colour, linewidth=2)
            marker = MARKER_OF_KIND[row["kind"]]
            axes.plot(value_of(row), place, marker, color=colour, clip_on=False)
        axes.xaxis.set_major_locator(result_ticks(size))
        clean(axes, "x")
    for place, row in enumerate(rows):
        panels[-1].annotate(
            *(_result_and_interval(row), (1, place), (14, 0)),
            xycoords=panels[-1].get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            color=COLOUR_OF_KIND[row["kind"]],
        )
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    broken = f" ({BROKEN})" if len(parts) > 1 else ""
    figure.supxlabel(f"{metric_title(rows)}, with 95 % interval{broken}", fontsize=10)
    legend_of_kinds(figure, rows, MARKER_OF_KIND)
    return figure


def line_count(text: str) -> int:
    """Return how many lines a label has."""
    return text.count("\n") + 1


def _result_and_interval(row: Row) -> str:
    shown = format_metric(row["after"], row["metric_name"])
    if not row.get("interval"):
        return shown
    low, high = (format_metric(bound, row["metric_name"]) for bound in row["interval"])
    return f"{shown}  [{low}, {high}]"


def _unit(row: Row) -> float:
    return 100.0 if row["metric_name"] in PERCENT_METRICS else 1.0


def value_of(row: Row) -> float:
    """Return a row's result in the unit of the result axis."""
    return float(row["after"]) * _unit(row)


def _interval(row: Row) -> Span:
    low, high = row.get("interval") or (row["after"], row["after"])
    return float(low) * _unit(row), float(high) * _unit(row)


def result_parts(rows: Sequence[Row], spans: Sequence[Span]) -> list[Span]:
    """Return the stretches of the result axis that hold ``spans``, in its unit."""
    unit = _unit(rows[0])
    limits = (0.0, 100.0) if unit == 100.0 else (-math.inf, math.inf)
    return axis_parts(spans, limits, least=0.005 * unit)


def lies_within(row: Row, part: Span) -> bool:
    """Say whether a row's result lies in a part of the axis."""
    return part[0] <= value_of(row) <= part[1]


def result_ticks(size: float) -> MaxNLocator:
    """Return where a result axis that takes ``size`` of the picture has its figures."""
    return MaxNLocator(max(2, round(8 * size)), steps=[1, 2, 5, 10], min_n_ticks=2)


def legend_of_kinds(
    figure: Figure,
    rows: Sequence[Row],
    style_of_kind: Mapping[str, str],
    others: Sequence[Line2D] = (),
) -> None:
    """Give the figure a legend of the kinds of rows that it shows.

    Args:
        figure: with axes.
        rows: that it shows.
        style_of_kind: marker or line of each kind.
        others: lines that have a label of their own.
    """
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], style_of_kind[kind], color=COLOUR_OF_KIND[kind], label=label)[0]
        for kind, label in (("run", "trained here"), ("baseline", "cheap baseline"))
        if any(row["kind"] == kind for row in rows)
    ]
    handles += others
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
