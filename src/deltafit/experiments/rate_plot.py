"""What each trial of a search came to against its learning rate. Figures without global state."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from deltafit.experiments.drawing import BLUE, GREY, ORANGE, clean, wrapped
from deltafit.experiments.tables import PERCENT_METRICS, metric_title
from deltafit.experiments.tuning import TunedRow

_ACROSS = 2
# In shape and filling too, for those who see no colours.
_STYLES = {
    "finished": ("o", BLUE, BLUE, 6),
    "pruned": ("s", "white", GREY, 5),
    "chosen": ("*", ORANGE, ORANGE, 12),
}


def rate_plot(rows: Sequence[TunedRow], metric: str) -> Figure:
    """Draw the validation figure of each trial against its learning rate, one panel a row.

    Trials that diverged before their first evaluation have no figure.

    Args:
        rows: of a search; those whose learning rate was searched are drawn, at least one.
        metric: that the trials were judged by.
    """
    rows = [row for row in rows if "learning_rate" in row.space.settings]
    across = min(_ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    figure = Figure(figsize=(4.5 * across, 1 + 2.4 * down), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    factor = 100 if metric in PERCENT_METRICS else 1
    for row, axes in zip(rows, panels, strict=False):
        for trial in row.trials:
            if trial.figures:
                figures = trial.figures[-1] if trial.result is None else trial.result[0]
                name = "chosen" if trial is row.chosen else "finished"
                if trial.result is None:
                    name = "pruned"
                marker, face, edge, size = _STYLES[name]
                axes.plot(
                    trial.chosen["learning_rate"], factor * figures, marker,
                    markerfacecolor=face, markeredgecolor=edge, markersize=size,
                    zorder=3 if name == "chosen" else 2,
                )  # fmt: skip
        axes.set_xscale("log")
        # Not as powers of ten, which would be mathematics, and a page has none.
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelbottom=True)  # below an odd number of rows one has nothing
        axes.set_title(wrapped(row.space.row.name, 40), fontsize=9)
        clean(axes, "both")
    for axes in [*panels]:
        axes.set_visible(False)  # of an odd number of rows the last
    figure.supxlabel("learning rate (logarithmic)", fontsize=10)
    figure.supylabel(f"validation {metric_title([{'metric_name': metric}])}", fontsize=10)
    return figure
