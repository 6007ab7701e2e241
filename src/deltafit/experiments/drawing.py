"""What the plots share: colours, folded names, plain axes, and axes that are broken."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito (2008): colours that people with any colour vision tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"
GREY = "#767676"  # of what says nothing; 4.5 : 1 against white, as text must be

Span = tuple[float, float]

_PADDING = 0.06  # of a part's length, at either end
_SMALLEST_PANEL = 0.2  # of a broken axis


def wrapped(text: str, width: int = 28) -> str:
    """Fold ``text`` at spaces and commas into at most three lines; what is longer ends in "…"."""
    # More lines of a method's settings would leave its axes no room.
    lines = textwrap.wrap(text.replace(",", ", "), width, max_lines=3, placeholder=" …")
    return "\n".join(lines).replace(", ", ",") or text


def clean(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Take the upper and right line of the axes' frame away, and draw a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def axis_parts(spans: Sequence[Span], limits: Span, least: float) -> list[Span]:
    """Return the stretches of an axis that hold all ``spans``, the lowest first.

    It is one stretch, unless that would be empty for more than three quarters of its length and
    leaving out one or two gaps changes this: results far from all others would squash the others
    into one corner.

    Args:
        spans: what has to be seen, ``(low, high)`` each; at least one.
        limits: what the quantity cannot leave, such as 0 and 100 %.
        least: the least padding, in the axis's unit; no gap under ten of it is left out.
    """
    ordered = sorted(spans)
    tops = np.maximum.accumulate([high for _, high in ordered])
    gaps = np.array([low - top for (low, _), top in zip(ordered[1:], tops[:-1], strict=True)])
    whole = tops[-1] - ordered[0][0]
    widest = np.argsort(gaps)[::-1]
    for cuts in (widest[:1], widest[:2]):
        # As many parts as spans would show nothing that one stretch does not.
        if (
            len(ordered) > len(cuts) + 1
            and gaps[cuts].sum() > 0.75 * whole
            and gaps[cuts].min() > max(0.25 * whole, 10 * least)
        ):
            ends = [0, *sorted(cuts + 1), len(ordered)]
            groups = [ordered[start:end] for start, end in itertools.pairwise(ends)]
            return [_padded(group, limits, least) for group in groups]
    return [_padded(ordered, limits, least)]


def _padded(spans: Sequence[Span], limits: Span, least: float) -> Span:
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    padding = max(_PADDING * (high - low), least)
    return max(limits[0], low - padding), min(limits[1], high + padding)


def panel_sizes(wanted: Sequence[float]) -> list[float]:
    """Return the panels' shares of the whole: as ``wanted``, but none so small that it is lost."""
    sizes = np.maximum(np.array(wanted) / sum(wanted), _SMALLEST_PANEL)
    return [float(size) for size in sizes / sizes.sum()]


def broken_panels(
    figure: Figure, axis: Literal["x", "y"], parts: Sequence[Span], sizes: Sequence[float]
) -> list[Axes]:
    """Return a panel for each part of one ``axis`` of the figure, its lowest part first."""
    if axis == "x":
        panels = figure.subplots(1, len(parts), sharey=True, squeeze=False, width_ratios=sizes)[0]
    else:
        panels = figure.subplots(
            len(parts), 1, sharex=True, squeeze=False, height_ratios=sizes[::-1]
        )[::-1, 0]
    for panel, part in zip(panels, parts, strict=True):
        (panel.set_xlim if axis == "x" else panel.set_ylim)(*part)
    for lower, upper in itertools.pairwise(panels):
        between, end = ("left", (1, 0)) if axis == "x" else ("bottom", (0, 1))
        upper.spines[between].set_visible(False)
        upper.tick_params(which="both", **{between: False})
        for panel, place in ((lower, end), (upper, (0, 0))):
            panel.plot(  # a slanted stroke: the axis goes on in the other panel
                *([place[0]], [place[1]]),
                **{"marker": [(-1, -1), (1, 1)], "markersize": 9, "color": "black"},
                **{"transform": panel.transAxes, "clip_on": False},
            )
    return list(panels)
