"""Plots of single runs: loss curves, confusion, F1 by class. Figures without global state."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deltafit.experiments.drawing import BLUE, GREY, ORANGE, clean, wrapped

History = Sequence[Mapping[str, Any]]

LABELLED_WHOLE = 20  # up to so many classes, a confusion matrix names all and writes its counts
WORST_LABELLED = 15
WORST_BARS = 20
CURVE_POINTS = 200
MARKED_POINTS = 40
LONGEST_CLASS_NAME = 40  # characters
FAR_ABOVE = 4  # times the highest first loss of all runs

# In stroke and marker too, for those who see no colours.
_LINE: dict[str, Any] = {"linewidth": 1.3, "markersize": 3.5}
_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "train_loss": ("training", {"color": BLUE, "linestyle": "-", "marker": "o", **_LINE}),
    "validation_loss": ("validation", {"color": ORANGE, "linestyle": "--", "marker": "s", **_LINE}),
}
_THIN: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.7}


def loss_plot(histories: Mapping[str, Sequence[History]], across: int = 3) -> Figure:
    """Draw training and validation loss, one panel a row on shared axes.

    Of several seeds each has a thin line, and their mean, over the steps that all of them have, a
    thick one. Losses far above where all runs began, as a run that diverges has them, leave the
    axis at its top and are given in words.

    Args:
        histories: of each row's runs, by the row's name; at least one.
        across: panels beside each other, at most.
    """
    columns = min(across, len(histories))
    lines = -(-len(histories) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.8, 2.6 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    ceiling = _ceiling([history for runs in histories.values() for history in runs])
    for axes, (name, runs) in zip(panels, histories.items(), strict=False):
        for key in _LOSSES:
            _draw_losses(axes, runs, key)
        highest = max((loss for history in runs for loss in _finite(history)), default=math.nan)
        if not highest <= ceiling:
            text = "no loss is finite" if math.isnan(highest) else f"goes on to {highest:.3g}"
            axes.text(0.98, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.set_title(wrapped(name), fontsize=9)
        axes.tick_params(labelbottom=True, labelleft=True)
        clean(axes, "both")
    shared = panels[0]
    first, last = shared.get_xlim()
    if last - first < 2:  # a single step
        shared.set_xlim((first + last) / 2 - 1, (first + last) / 2 + 1)
    shared.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if ceiling < math.inf:
        shared.set_ylim(0, ceiling)
    for axes in panels[len(histories) :]:
        axes.set_visible(False)
    handles = [Line2D([], [], label=label, **style) for label, style in _LOSSES.values()]
    several = any(len(runs) > 1 for runs in histories.values())
    seeds = [Line2D([], [], color=GREY, label="thin: each seed", **_THIN)] if several else []
    figure.legend(handles=[*handles, *seeds], loc="outside upper left", ncols=3, frameon=False)
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel("loss, nats per example", fontsize=10)
    return figure


def _draw_losses(axes: Axes, runs: Sequence[History], key: str) -> None:
    """Draw one loss of a row's runs: the mean of several seeds above the line of each."""
    _, style = _LOSSES[key]
    if len(runs) > 1:
        for history in runs:
            axes.plot(*_curve(history, key), **style | _THIN | {"marker": ""})
    steps, losses = _curve(_mean_history(runs, key), key)
    # Of one point there is no line to be seen; many points would hide it.
    few = len(steps) == 1 or (key == "validation_loss" and len(steps) <= MARKED_POINTS)
    axes.plot(steps, losses, **style if few else style | {"marker": ""})


def _mean_history(runs: Sequence[History], key: str) -> History:
    """Return the mean of a loss over runs, at the steps where all of them have it."""
    known = [{r["step"]: r[key] for r in history if r.get(key) is not None} for history in runs]
    common = [step for step in known[0] if all(step in losses for losses in known)] if known else []
    return [{"step": step, key: fmean(losses[step] for losses in known)} for step in common]


def confusion_plot(metrics: Mapping[str, Any], title: str) -> Figure:
    """Draw a confusion matrix, each row as shares of its true class.

    Up to 20 classes are all named, with their counts; beyond, the 15 of lowest recall are.
    """
    names, counts = list(metrics["per_class"]), np.array(metrics["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= LABELLED_WHOLE
    side = 3.2 + 0.35 * len(names) if few else 9.0
    size = 9 if few else 7
    recall = np.where(counts.sum(axis=1) > 0, np.diag(shares), np.inf)
    labelled = range(len(names)) if few else sorted(np.argsort(recall)[:WORST_LABELLED])
    labels = [_shortened(names[index]) for index in labelled]
    # Inches that the names take beside and below the matrix.
    margin = 0.6 + 0.0095 * size * max(map(len, labels))
    width = side + margin + 1.0
    figure = Figure(figsize=(width, side + margin), layout="constrained")
    axes = figure.subplots()
    # The square root brings out the errors, which are small shares beside the diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
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
    figure.suptitle(wrapped(title, round(11 * width)) + extent, fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("share of the true class's rows\n(square-root scale)")
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
    axes.set_yticks(range(len(worst)), [wrapped(name, 40) for name, _ in worst], fontsize=8)
    axes.set_ylim(len(worst) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("F1, %")
    extent = (
        f"\nthe {len(worst)} worst of {len(present)} classes" if len(worst) < len(present) else ""
    )
    axes.set_title(wrapped(title, 60) + extent, fontsize=10, pad=18)
    clean(axes, "x")
    return figure


def _shortened(name: str) -> str:
    """Leave out the middle of a long class name; names often differ at their end."""
    if len(name) <= LONGEST_CLASS_NAME:
        return name
    kept = (LONGEST_CLASS_NAME - 1) // 2
    return f"{name[:kept]}…{name[-kept:]}"


def _ceiling(histories: Collection[History]) -> float:
    """Return where the axis of losses ends: twice the highest first loss, if any goes far above."""
    finite = [losses for losses in map(_finite, histories) if losses]
    start = max((losses[0] for losses in finite), default=0.0)
    far = max(map(max, finite), default=0.0) > FAR_ABOVE * start > 0
    return 2 * start if far else math.inf


def _finite(history: History) -> list[float]:
    losses = [record.get(key) for record in history for key in ("train_loss", "validation_loss")]
    return [loss for loss in losses if loss is not None and math.isfinite(loss)]


def _curve(history: History, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return steps and values of ``key``, averaged down to at most 200 points."""
    pairs = [(record["step"], record[key]) for record in history if record.get(key) is not None]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    bins = np.array_split(points, min(len(points), CURVE_POINTS)) if len(points) else []
    means = np.array([part.mean(axis=0) for part in bins]).reshape(-1, 2)
    return means[:, 0], means[:, 1]
