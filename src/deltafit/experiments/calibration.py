"""Whether a method is right as often as it says: reliability by confidence, and its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from deltafit.experiments.answers import Answers, IntArray
from deltafit.experiments.drawing import BLUE, clean, wrapped
from deltafit.tasks.metrics import (
    CALIBRATION_BINS,
    accuracy_interval,
    calibration_bins,
    calibration_gap,
)

ACROSS = 3


@dataclass(frozen=True)
class Bin:
    """Rows of like confidence, of all seeds together.

    Attributes:
        confidence: their mean.
        accuracy: the share that is right.
        interval: Wilson's 95 % of it, ``(low, high)``.
        count: of rows, a row once a seed.
    """

    confidence: float
    accuracy: float
    interval: tuple[float, float]
    count: int


@dataclass(frozen=True)
class Reliability:
    """How well confidence tells accuracy.

    Attributes:
        bins: those that hold rows, by confidence.
        errors: expected calibration error of each seed.
    """

    bins: tuple[Bin, ...]
    errors: tuple[float, ...]


def reliability(labels: IntArray, answers: Answers) -> Reliability | None:
    """Return a method's reliability; None where it gives no probabilities.

    Args:
        labels: true class indices, ``[n]``.
        answers: of the method.
    """
    if answers.confidence is None:
        return None
    correct = answers.predicted == labels
    of_row = calibration_bins(answers.confidence)
    bins = []
    for index in np.unique(of_row):
        within = of_row == index
        count, right = int(within.sum()), int(correct[within].sum())
        low, high = accuracy_interval(right, count)
        mean = float(answers.confidence[within].mean())
        bins.append(Bin(mean, right / count, (low, high), count))
    pairs = zip(answers.confidence, correct, strict=True)
    return Reliability(tuple(bins), tuple(calibration_gap(*pair) for pair in pairs))


def format_error(errors: Sequence[float]) -> str:
    """Return "3.1 %", or of several seeds their mean and range: "3.1 % (2.8–3.4)"."""
    mean = f"{100 * np.mean(errors):.1f} %"
    if len(errors) == 1:
        return mean
    return f"{mean} ({100 * min(errors):.1f}–{100 * max(errors):.1f})"


def calibration_plot(curves: Mapping[str, Reliability]) -> Figure:
    """Draw accuracy against confidence, one panel a method; the diagonal is perfect calibration.

    A marker's area grows with its bin's rows.

    Args:
        curves: by the method's name; at least one.
    """
    columns = min(ACROSS, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.7, 2.7 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--")
        x = [each.confidence for each in curve.bins]
        y = [each.accuracy for each in curve.bins]
        ends = np.array([each.interval for each in curve.bins])
        axes.vlines(x, ends[:, 0], ends[:, 1], color=BLUE, linewidth=1)
        total = sum(each.count for each in curve.bins)
        sizes = [8 + 80 * each.count / total for each in curve.bins]
        axes.plot(x, y, color=BLUE, linewidth=1)
        axes.scatter(x, y, s=sizes, color=BLUE, zorder=3)
        axes.set_title(f"{wrapped(name, 26)}\nerror {format_error(curve.errors)}", fontsize=9)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelbottom=True, labelleft=True)
        clean(axes, "both")
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel(f"confidence, in {CALIBRATION_BINS} bins of equal width", fontsize=10)
    figure.supylabel("share that is right, with 95 % interval", fontsize=10)
    return figure
