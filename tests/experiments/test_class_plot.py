"""Differences by class: each at its place, the rare ones diamonds, noise grey and hollow."""

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltafit.experiments.class_plot import SHOWN, class_difference_plot, most_telling
from deltafit.experiments.class_statistics import ClassDifference
from deltafit.experiments.drawing import BLUE, GREY, ORANGE
from deltafit.experiments.statistics import PairedComparison
from tests.experiments.figures import assert_inside


def difference(
    name: str, points: float, half: float = 0.02, *, noise: bool = False, rare: bool = False
) -> ClassDifference:
    low, high = points - half, points + 2 * half
    within = low <= 0 <= high
    found = PairedComparison(points, low, high, 0.01, 0.04, within, not (within or noise))
    return ClassDifference(name, 40, 9 if rare else 80, rare, 0.8 + points, 0.8, found)


DIFFERENCES = [
    difference("gain", 0.10),
    difference("rare gain", 0.08, rare=True),
    # Its own interval leaves 0 out; it does not stand correction.
    difference("undecided", 0.05, noise=True),
    difference("rare undecided", -0.07, noise=True, rare=True),
    difference("rare noise", -0.01, noise=True, rare=True),
    difference("loss", -0.12),
    difference("rare loss", -0.2, rare=True),
]
EXPECTED = {
    "gain": ("o", BLUE, BLUE, "full"),
    "rare gain": ("D", BLUE, BLUE, "full"),
    "undecided": ("o", GREY, GREY, "left"),
    "rare undecided": ("D", GREY, GREY, "left"),
    "rare noise": ("D", GREY, "white", "full"),
    "loss": ("o", ORANGE, ORANGE, "full"),
    "rare loss": ("D", ORANGE, ORANGE, "full"),
}


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def test_every_class_stands_at_its_line_with_its_interval_its_shape_and_its_colour() -> None:
    figure = class_difference_plot(DIFFERENCES)
    assert_inside(figure)
    axes = axes_of(figure)
    zero, *lines = axes.get_lines()
    assert list(zero.get_xdata()) == [0, 0]
    names = {
        label.get_text().split(" (")[0]: (label.get_text(), place)
        for label, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    for place, each in enumerate(DIFFERENCES):
        label, stands_at = names[each.name]
        assert stands_at == place
        assert label.replace("\n", " ").endswith("(40 rows, rare)" if each.rare else "(40 rows)")
        interval, mark = (line for line in lines if line.get_ydata()[0] == place)
        found = each.comparison
        assert list(interval.get_xdata()) == pytest.approx([100 * found.low, 100 * found.high])
        assert list(mark.get_xdata()) == pytest.approx([100 * found.difference])
        shape, edge, face, filled = EXPECTED[each.name]
        assert (mark.get_marker(), mark.get_color(), mark.get_markerfacecolor()) == (
            *(shape, edge, face),
        )
        assert mark.get_fillstyle() == filled
        assert filled == "full" or mark.get_markerfacecoloralt() == "white"
        assert interval.get_color() == edge


def test_what_is_better_is_blue_and_on_the_right() -> None:
    for each in (DIFFERENCES[0], DIFFERENCES[-2]):
        line = axes_of(class_difference_plot([each])).get_lines()[-1]
        assert (line.get_color() == BLUE) == (line.get_xdata()[0] > 0)


def test_the_most_telling_are_those_beyond_noise_then_the_rare_then_the_largest() -> None:
    beyond = [difference(f"beyond {i}", 0.001 * (i - 8), half=0) for i in range(8)]
    rare = [difference(f"rare {i}", 0.01 * i, noise=True, rare=True) for i in range(6)]
    noise = [difference(f"noise {i}", 0.02 * (i - 10), noise=True) for i in range(20)]
    shown = most_telling([*noise, *rare, *beyond])
    assert len(shown) == SHOWN == 20
    assert {each.name for each in shown if not each.name.startswith("noise")} == {
        each.name for each in [*beyond, *rare]
    }
    left = [abs(each.comparison.difference) for each in noise if each not in shown]
    kept = [abs(each.comparison.difference) for each in noise if each in shown]
    assert len(kept) == 6 and min(kept) >= max(left)
    gains = [each.comparison.difference for each in shown]
    assert gains == sorted(gains, reverse=True)
