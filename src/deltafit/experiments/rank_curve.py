"""Accuracy against rank, as a picture: what is noise, and which rank is the smallest within it."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from deltafit.experiments.drawing import BLUE, ORANGE, clean, wrapped
from deltafit.experiments.rank_rows import RankRow, best_rank, smallest_rank
from deltafit.experiments.statistics import smallest_visible_difference

_GREY = "#777777"
# The standing shows in shape and filling too, for those who see no colours.
_STYLES = {
    "best": ("*", BLUE, BLUE, 11),
    "within noise": ("o", BLUE, BLUE, 6),
    "undecided": ("D", "white", _GREY, 6),
    "worse": ("s", "white", ORANGE, 6),
}


def rank_curve(rows: Sequence[RankRow], title: str) -> Figure:
    """Draw accuracy with its 95 % interval against rank, and what these rows cannot tell apart.

    Ranks stand at equal distances. The zone of noise below the best is as high as the smallest
    difference that so many rows can show; a larger one may be noise too, and its mark says so.

    Args:
        rows: of all ranks, compared; the lowest first.
        title: the adapter.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    best, chosen = best_rank(rows), smallest_rank(rows)
    places = range(len(rows))
    accuracies = [100 * row.measured.accuracy for row in rows]
    lows = [100 * row.measured.interval[0] for row in rows]
    highs = [100 * row.measured.interval[1] for row in rows]
    axes.fill_between(
        places, lows, highs, color=BLUE, alpha=0.13, linewidth=0, label="95 % interval"
    )
    visible = smallest_visible_difference(len(best.measured.correct))
    if visible is not None:
        top = 100 * best.measured.accuracy
        zone = axes.axhspan(top - 100 * visible, top, facecolor="none", linewidth=0, alpha=0.45)
        zone.set(hatch="///", edgecolor=_GREY, label="too small a difference to show")
    axes.plot(places, accuracies, color=BLUE, linewidth=1.2)
    for name, (marker, face, edge, size) in _STYLES.items():
        shown = [place for place in places if rows[place].standing == name]
        if shown:
            (marks,) = axes.plot(shown, [accuracies[place] for place in shown], marker)
            marks.set(markerfacecolor=face, markeredgecolor=edge, markersize=size)
            marks.set(label=name, zorder=3)
    place = rows.index(chosen)
    axes.axvline(place, color=_GREY, linestyle=":", linewidth=1)
    said = "the best" if chosen is best else "smallest within noise"
    axes.set_xticks(
        places, [f"{row.rank}\n{said}" if row is chosen else str(row.rank) for row in rows]
    )
    axes.get_xticklabels()[place].set_fontweight("bold")
    clean(axes, "y")
    axes.set_xlabel("rank")
    axes.set_ylabel("accuracy %")
    figure.suptitle(wrapped(title, 70), fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
