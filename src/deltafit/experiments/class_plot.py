"""How much better or worse each class fares than under a reference, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from deltafit.experiments.class_statistics import ClassDifference
from deltafit.experiments.drawing import BLUE, GREY, ORANGE, clean, wrapped
from deltafit.experiments.tables import Outcome, outcome_of

SHOWN = 20
_FILLS: Mapping[Outcome, dict[str, Any]] = {
    **{"better": {}, "worse": {}, "within noise": {"markerfacecolor": "white"}},
    "undecided": {"fillstyle": "left", "markerfacecoloralt": "white"},
}


def most_telling(differences: Sequence[ClassDifference]) -> list[ClassDifference]:
    """Return at most 20 classes: beyond noise first, then the rare, then the largest differences.

    They come sorted by their difference, the largest gain first.
    """
    chosen = sorted(
        differences,
        key=lambda d: (not d.comparison.beyond_noise, not d.rare, -abs(d.comparison.difference)),
    )[:SHOWN]
    return sorted(chosen, key=lambda each: -each.comparison.difference)


def class_difference_plot(differences: Sequence[ClassDifference]) -> Figure:
    """Draw the differences in F1 with their 95 % intervals.

    What is not beyond noise is grey: hollow within noise, half filled where it is undecided. Rare
    classes are diamonds.

    Args:
        differences: as `most_telling` returns them; at least one.
    """
    names = [_label(each) for each in differences]
    height = 0.34 + 0.13 * max(name.count("\n") for name in names)
    figure = Figure(figsize=(7, 1.3 + height * len(differences)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    for place, each in enumerate(differences):
        found = each.comparison
        colour = BLUE if found.difference > 0 else ORANGE
        colour = colour if found.beyond_noise else GREY
        axes.plot([100 * found.low, 100 * found.high], [place, place], color=colour, linewidth=2)
        style = _FILLS[outcome_of(vars(found))] | {"color": colour, "ms": 6}
        axes.plot(100 * found.difference, place, "D" if each.rare else "o", **style)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("difference in F1, points, with 95 % interval")
    clean(axes, "x")
    return figure


def _label(each: ClassDifference) -> str:
    rare = ", rare" if each.rare else ""
    return wrapped(f"{each.name} ({each.support} rows{rare})", 40)
