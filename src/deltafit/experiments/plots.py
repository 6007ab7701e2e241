"""Plots of a comparison, as matplotlib figures without global state."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

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
from deltafit.experiments.tables import PERCENT_METRICS, Row, format_metric, metric_title

COLOUR_OF_KIND = {"run": BLUE, "baseline": ORANGE}
MARKER_OF_KIND = {"run": "o", "baseline": "s"}

_LINE = 0.17  # inches that a line of a label takes, with what keeps it from the next
# From the middle of the label's left side to its point.
_LEADER = {"arrowstyle": "-", "relpos": (0, 0.5), "alpha": 0.35, "linewidth": 0.8}
_BROKEN = "the axis is broken; its parts differ in scale"


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
    height = max(0.42, 0.1 + _LINE * max(_lines(name) for name in names))
    figure = Figure(figsize=(8.5, 1.4 + height * len(rows)), layout="constrained")
    parts = _parts(rows, [_interval(row) for row in rows])
    groups = [[row for row in rows if _within(row, part)] for part in parts]
    sizes = panel_sizes([len(group) for group in groups])
    panels = broken_panels(figure, "x", parts, sizes)
    for axes, group, size in zip(panels, groups, sizes, strict=True):
        for row in group:
            place, colour = rows.index(row), COLOUR_OF_KIND[row["kind"]]
            axes.plot(_interval(row), [place, place], color=colour, linewidth=2)
            marker = MARKER_OF_KIND[row["kind"]]
            axes.plot(_value(row), place, marker, color=colour, clip_on=False)
        axes.xaxis.set_major_locator(_ticks(size))
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
    broken = f" ({_BROKEN})" if len(parts) > 1 else ""
    figure.supxlabel(f"{metric_title(rows)}, with 95 % interval{broken}", fontsize=10)
    _legend_of_kinds(figure, rows, MARKER_OF_KIND)
    return figure


def share_plot(rows: Sequence[Row]) -> Figure:
    """Draw results against the share of parameters trained; methods without one are lines.

    The axis of results is broken where some far from all others would squash these.

    Args:
        rows: of the comparison, all of them judged; at least one with a share.
    """
    parts = _parts(rows, [(_value(row), _value(row)) for row in rows])
    groups = [[row for row in rows if _within(row, part)] for part in parts]
    needed = [sum(_label_height(row) for row in group) for group in groups]
    sizes = panel_sizes(needed)
    # Every part is as high as its labels need, one above the other.
    room = max(3.2, *(need / size for need, size in zip(needed, sizes, strict=True)))
    figure = Figure(figsize=(9, 1.4 + room), layout="constrained")
    panels = broken_panels(figure, "y", parts, sizes)
    panels[0].set_xscale("log")
    panels[0].set_xlim(*_share_limits(rows))
    panels[0].xaxis.set_major_formatter(lambda share, _: f"{share:g}")
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    for axes, group, size in zip(panels, groups, sizes, strict=True):
        axes.yaxis.set_major_locator(_ticks(size))
        clean(axes, "both")
        _draw_shares(axes, group, room * size)
    figure.supxlabel("share of parameters trained, % (logarithmic)", fontsize=10)
    broken = f"\n({_BROKEN})" if len(parts) > 1 else ""
    figure.supylabel(f"{metric_title(rows)}{broken}", fontsize=10, ma="center")
    _legend_of_kinds(figure, rows, MARKER_OF_KIND | {"baseline": "--"})
    return figure


def _draw_shares(axes: Axes, rows: Sequence[Row], room: float) -> None:
    """Draw the rows of one panel, ``room`` inches high, and their labels beside it."""
    low, high = axes.get_ylim()
    wanted = [(_value(row) - low) / (high - low) for row in rows]
    places = _spread(wanted, [_label_height(row) / room for row in rows])
    for row, place in zip(rows, places, strict=True):
        value, share, colour = _value(row), _share(row), COLOUR_OF_KIND[row["kind"]]
        if share is None:
            axes.axhline(value, color=colour, linestyle="--", linewidth=1)
        else:
            axes.plot(share, value, MARKER_OF_KIND[row["kind"]], color=colour, clip_on=False)
        axes.annotate(
            _label(row),
            (axes.get_xlim()[1] if share is None else share, value),
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
    return 0.06 + 0.85 * _LINE * _lines(_label(row))


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _result_and_interval(row: Row) -> str:
    shown = format_metric(row["after"], row["metric_name"])
    if not row.get("interval"):
        return shown
    low, high = (format_metric(bound, row["metric_name"]) for bound in row["interval"])
    return f"{shown}  [{low}, {high}]"


def _unit(row: Row) -> float:
    return 100.0 if row["metric_name"] in PERCENT_METRICS else 1.0


def _value(row: Row) -> float:
    return float(row["after"]) * _unit(row)


def _interval(row: Row) -> Span:
    low, high = row.get("interval") or (row["after"], row["after"])
    return float(low) * _unit(row), float(high) * _unit(row)


def _share(row: Row) -> float | None:
    """Return the share of parameters trained, in per cent."""
    return 100.0 * row["trainable"] / row["total"] if row.get("trainable") else None


def _parts(rows: Sequence[Row], spans: Sequence[Span]) -> list[Span]:
    """Return the stretches of the result axis that hold ``spans``, in its unit."""
    unit = _unit(rows[0])
    limits = (0.0, 100.0) if unit == 100.0 else (-math.inf, math.inf)
    return axis_parts(spans, limits, least=0.005 * unit)


def _within(row: Row, part: Span) -> bool:
    return part[0] <= _value(row) <= part[1]


def _share_limits(rows: Sequence[Row]) -> Span:
    """Return powers of ten around the shares, the lower one clearly below; none is above 100 %."""
    shares = [share for share in map(_share, rows) if share is not None]
    low = math.floor(math.log10(min(shares)) - 0.1)
    high = math.ceil(math.log10(max(shares)))
    return 10.0**low, min(100.0, 10.0 ** max(high, low + 1))


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


def _ticks(size: float) -> MaxNLocator:
    """Return where a result axis that takes ``size`` of the picture has its figures."""
    return MaxNLocator(max(2, round(8 * size)), steps=[1, 2, 5, 10], min_n_ticks=2)


def _legend_of_kinds(figure: Figure, rows: Sequence[Row], style_of_kind: Mapping[str, str]) -> None:
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], style_of_kind[kind], color=COLOUR_OF_KIND[kind], label=label)[0]
        for kind, label in (("run", "trained here"), ("baseline", "cheap baseline"))
        if any(row["kind"] == kind for row in rows)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
