"""Plots of a comparison and of its runs, as matplotlib figures without global state."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deltafit.experiments.tables import PERCENT_METRICS, Row, format_metric, metric_title

History = Sequence[Mapping[str, Any]]

# Okabe & Ito (2008): colours that people with any colour vision tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLOUR_OF_KIND = {"run": BLUE, "baseline": ORANGE}

LABELLED_WHOLE = 20  # up to so many classes, a confusion matrix names all and writes its counts
WORST_LABELLED = 15
WORST_BARS = 20
CURVE_POINTS = 200
# A method this far (in fractions) below the best would squash all the others into one corner.
FAR_BELOW = 0.25


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG of 150 dots per inch."""
    figure.savefig(path, format="png", dpi=150)


def accuracy_plot(rows: Sequence[Row]) -> Figure:
    """Draw each method's result with its 95 % interval, in the table's order."""
    figure = Figure(figsize=(8, 1.3 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    unit, floor = _unit(rows), _axis_floor(rows)
    for place, row in enumerate(rows):
        value, colour = row["after"] * unit, COLOUR_OF_KIND[row["kind"]]
        text = _result(row)
        if value < floor:
            edge = axes.get_yaxis_transform()
            axes.text(0.01, place, f"◂ {text}", transform=edge, va="center", color=colour)
            continue
        low, high = (bound * unit for bound in row.get("interval") or (row["after"],) * 2)
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(value, place, "o" if row["kind"] == "run" else "s", color=colour)
        axes.annotate(
            text, (high, place), (6, 0), textcoords="offset points", va="center", color=colour
        )
    axes.set_yticks(range(len(rows)), [_wrapped(row["name"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{metric_title(rows)}, with 95 % interval")
    _legend_of_kinds(figure, rows)
    _clean(axes, "x")
    return figure


def share_plot(rows: Sequence[Row]) -> Figure:
    """Draw results against the share of parameters trained; methods without one are lines."""
    figure = Figure(figsize=(9, max(4.5, 0.4 * len(rows))), layout="constrained")
    axes = figure.subplots()
    unit, floor = _unit(rows), _axis_floor(rows)
    shown = [row for row in rows if row["after"] * unit >= floor]
    anchors = []
    for row in shown:
        value, colour = row["after"] * unit, COLOUR_OF_KIND[row["kind"]]
        if row.get("trainable"):
            share = 100 * row["trainable"] / row["total"]
            axes.plot(share, value, "o" if row["kind"] == "run" else "s", color=colour)
            anchors.append((share, value))
        else:
            axes.axhline(value, color=colour, linestyle="--", linewidth=1)
            anchors.append((None, value))
    axes.set_xscale("log")
    axes.margins(0.08)
    low, high = axes.get_ylim()
    wanted = [(value - low) / (high - low) for _, value in anchors]
    places = _spread(wanted, gap=0.07)
    for row, (share, value), place in zip(shown, anchors, places, strict=True):
        colour = COLOUR_OF_KIND[row["kind"]]
        text = f"{_result(row)}  {_wrapped(row['name'], 40)}"
        leader = {"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.8}
        axes.annotate(
            text,
            (axes.get_xlim()[1] if share is None else share, value),
            (1.02, place),
            textcoords=axes.transAxes,
            va="center",
            fontsize=8,
            color=colour,
            arrowprops=leader,
        )
    far = [f"{_result(row)} {row['name']}" for row in rows if row["after"] * unit < floor]
    below = f"\nfar below the axis: {'; '.join(far)}" if far else ""
    axes.set_xlabel(f"share of parameters trained, % (logarithmic){below}")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:g}")
    axes.set_ylabel(metric_title(rows))
    _legend_of_kinds(figure, rows)
    _clean(axes, "both")
    return figure


def loss_plot(histories: Mapping[str, History]) -> Figure:
    """Draw training and validation loss, one panel a run on shared axes."""
    columns = min(3, len(histories))
    lines = -(-len(histories) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.8, 2.5 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    series = [
        ("train_loss", "training", BLUE, "-"),
        ("validation_loss", "validation", ORANGE, "o-"),
    ]
    for axes, (name, history) in zip(panels, histories.items(), strict=False):
        for key, _, colour, style in series:
            steps, losses = _curve(history, key)
            axes.plot(steps, losses, style, color=colour, linewidth=1.3, markersize=3.5)
        axes.set_title(_wrapped(name), fontsize=9)
        _clean(axes, "both")
    for axes in panels[len(histories) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(histories) - columns) :]:
        axes.tick_params(
            labelbottom=True
        )  # the lowest panel of a column may not be in the last row
    handles = figure.axes[0].get_lines()
    figure.legend(
        handles,
        [label for _, label, *_ in series],
        loc="outside upper left",
        ncols=2,
        frameon=False,
    )
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel("loss, nats per example", fontsize=10)
    return figure


def confusion_plot(metrics: Mapping[str, Any], title: str) -> Figure:
    """Draw a confusion matrix, each row as shares of its true class.

    Up to 20 classes are all named, with their counts; beyond, the 15 of lowest recall are.
    """
    names, counts = list(metrics["per_class"]), np.array(metrics["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= LABELLED_WHOLE
    side = 4.0 + 0.35 * len(names) if few else 11.0
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    # The square root brings out the errors, which are small shares beside the diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    recall = np.where(counts.sum(axis=1) > 0, np.diag(shares), np.inf)
    labelled = range(len(names)) if few else sorted(np.argsort(recall)[:WORST_LABELLED])
    labels = [names[index] for index in labelled]
    size = 9 if few else 7
    axes.set_xticks(labelled, labels, rotation=90, fontsize=size)
    axes.set_yticks(labelled, labels, fontsize=size)
    if few:
        for (true, predicted), count in np.ndenumerate(counts):
            dark = shares[true, predicted] > 0.35
            colour = "white" if dark else "black"
            axes.text(
                predicted, true, str(count), ha="center", va="center", fontsize=8, color=colour
            )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    extent = "" if few else f"\n(named: the {WORST_LABELLED} classes of lowest recall)"
    axes.set_title(_wrapped(title, 60) + extent, fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("share of the true class's rows (square-root scale)")
    return figure


def class_f1_plot(metrics: Mapping[str, Any], title: str) -> Figure:
    """Draw the F1 of each class as bars, the worst first and at most 20."""
    present = [item for item in metrics["per_class"].items() if item[1]["support"] > 0]
    worst = sorted(present, key=lambda item: item[1]["f1"])[:WORST_BARS]
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(worst)), layout="constrained")
    axes = figure.subplots()
    scores = [100 * figures["f1"] for _, figures in worst]
    axes.barh(range(len(worst)), scores, color=BLUE, height=0.7)
    for place, (_, figures) in enumerate(worst):
        text = f"{100 * figures['f1']:.1f}  ({figures['support']} rows)"
        axes.text(102, place, text, va="center", fontsize=8)
    macro = 100 * metrics["macro_f1"]
    axes.axvline(macro, color=ORANGE, linewidth=1.2)
    axes.annotate(
        f"macro-F1 {macro:.1f}",
        (macro, 1.0),
        (0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        color=ORANGE,
        fontsize=9,
    )
    axes.set_yticks(range(len(worst)), [_wrapped(name, 40) for name, _ in worst], fontsize=8)
    axes.set_ylim(len(worst) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("F1, %")
    extent = (
        f"\nthe {len(worst)} worst of {len(present)} classes" if len(worst) < len(present) else ""
    )
    axes.set_title(_wrapped(title, 60) + extent, fontsize=10, pad=18)
    _clean(axes, "x")
    return figure


def _result(row: Row) -> str:
    return format_metric(row["after"], row["metric_name"])


def _unit(rows: Sequence[Row]) -> float:
    return 100.0 if rows and rows[0]["metric_name"] in PERCENT_METRICS else 1.0


def _axis_floor(rows: Sequence[Row]) -> float:
    """Return where the result axis begins; what lies below is only pointed at."""
    if _unit(rows) == 1.0:
        return -np.inf
    near = [row for row in rows if row["after"] >= max(r["after"] for r in rows) - FAR_BELOW]
    return 100.0 * min(float((row.get("interval") or [row["after"]])[0]) for row in near)


def _curve(history: History, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return steps and values of ``key``, averaged down to at most 200 points."""
    pairs = [(record["step"], record[key]) for record in history if record.get(key) is not None]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    bins = np.array_split(points, min(len(points), CURVE_POINTS)) if len(points) else []
    means = np.array([part.mean(axis=0) for part in bins]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Move places in [0, 1] apart until neighbours are ``gap`` away, keeping their order."""
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, 1.0 / max(1, len(order) - 1))
    places = np.array(wanted, dtype=np.float64)[order]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    limit = 1.0
    for index in reversed(range(len(places))):
        places[index] = limit = min(places[index], limit)
        limit -= gap
    result = np.empty(len(places))
    result[order] = places
    return [float(place) for place in result]


def _wrapped(text: str, width: int = 28) -> str:
    # More lines of a method's settings would leave its axes no room.
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …")) or text


def _legend_of_kinds(figure: Figure, rows: Sequence[Row]) -> None:
    kinds = {"run": ("o", "trained here"), "baseline": ("s", "cheap baseline")}
    axes = figure.axes[0]
    present = [kind for kind in kinds if any(row["kind"] == kind for row in rows)]
    handles = [
        axes.plot([], [], kinds[kind][0], color=COLOUR_OF_KIND[kind], label=kinds[kind][1])[0]
        for kind in present
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)


def _clean(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
