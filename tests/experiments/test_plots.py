"""The plots of a comparison show every row, at its place, and no text leaves the picture."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltafit.experiments.cost_plots import cost_plot
from deltafit.experiments.plots import accuracy_plot, save_png
from tests.experiments.figures import LONG, assert_apart, assert_inside, texts
from tests.experiments.rows import difference, example, row, run

Rows = list[dict[str, Any]]
PLOTS = [accuracy_plot, cost_plot]


def comparison(count: int, best: float, step: float = 0.002) -> Rows:
    """A far majority class and ``count - 1`` runs of long names up to ``best``; or one run."""
    far = row("majority class", "baseline", 1 / 77, difference(-90, 1), interval=[0.009, 0.017])
    rows = []
    for place in range(max(1, count - 1)):
        after = max(0.0, best - step * place)
        interval = [max(0.0, after - 0.01), min(1.0, after + 0.01)]
        trained = 10 ** (3 + place % 5)
        rows.append(run(f"{LONG},{place}", after, None, interval=interval, trainable=trained))
    return rows if count == 1 else [far, *rows]


def panel_of(figure: Figure, value: float, axis: str) -> Axes:
    """The one panel whose part of the result axis holds ``value``."""
    limits = [getattr(axes, f"get_{axis}lim")() for axes in figure.axes]
    (panel,) = (
        axes for axes, (low, high) in zip(figure.axes, limits, strict=True) if low <= value <= high
    )
    return panel


def drawn(axes: Axes) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axes.get_lines()]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("best", [1.0, 0.93, 0.02])
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_nothing_leaves_the_picture_or_covers_a_label(
    plot: Callable[[Rows], Figure], count: int, best: float
) -> None:
    rows = comparison(count, best)
    figure = plot(rows)
    assert_inside(figure)
    if plot is accuracy_plot:
        labels = [*figure.axes[0].get_yticklabels(), *figure.axes[-1].texts]
    else:
        labels = [text for axes in figure.axes for text in axes.texts]
    assert len(labels) == len(rows) * (2 if plot is accuracy_plot else 1)
    assert_apart(labels)
    for axes in figure.axes:
        low, high = axes.get_xlim() if plot is accuracy_plot else axes.get_ylim()
        assert 0 <= low < high <= 100
        assert axes.get_position().width > 0.05
    assert cost_plot(rows).axes[0].get_xlim()[1] <= 100


def test_accuracy_plot_draws_every_result_and_its_interval() -> None:
    rows = example()
    figure = accuracy_plot(rows)
    for place, each in enumerate(rows):
        lines = drawn(panel_of(figure, 100 * each["after"], "x"))
        assert [[100 * each["after"], place]] in lines
        assert [[100 * bound, place] for bound in each["interval"]] in lines
    shown = texts(figure)
    assert {"1.3  [0.9, 1.7]", "89.4  [88.5, 90.2]", "93.8  [92.9, 94.6]"} <= shown
    names = {name.replace(" ", "") for name in shown}
    assert {each["name"].replace(" ", "") for each in rows} <= names


def test_the_axis_is_broken_where_a_far_row_would_squash_the_others_and_says_so() -> None:
    broken, whole = accuracy_plot(example()), accuracy_plot(example()[1:])
    assert len(broken.axes) == 2 and len(whole.axes) == 1
    assert broken.axes[0].get_xlim()[1] < 10 and broken.axes[1].get_xlim()[0] > 80
    assert any("the axis is broken" in text for text in texts(broken))
    assert texts(whole) >= {"accuracy %, with 95 % interval"}


def test_cost_plot_draws_points_at_shares_and_lines_without() -> None:
    rows = example()
    figure = cost_plot(rows)
    for each in rows:
        value = 100 * each["after"]
        lines = drawn(panel_of(figure, value, "y"))
        if each["trainable"]:
            assert [[100 * each["trainable"] / each["total"], value]] in lines
        else:
            assert [[0, value], [1, value]] in lines
    shown = texts(figure)
    assert {"1.3  majority class", "93.6  full", "89.4  TF-IDF + linear SVM"} <= shown


def test_labels_of_equal_results_stand_apart() -> None:
    rows = [run(f"lora rank={r}", 0.93 + r / 1e5, difference(-0.1, 1)) for r in range(14)]
    figure = cost_plot([*rows, run("full", 0.94, None, trainable=22_742_861)])
    figure.draw_without_rendering()
    labels = [text for axes in figure.axes for text in axes.texts]
    assert len(labels) == 15
    assert_apart(labels)


def test_a_very_long_method_name_leaves_the_axes_their_room() -> None:
    rows = example()[1:]
    rows[-1]["name"] = f"lora:target_modules={'+'.join(f'layer.{i}.query' for i in range(40))}"
    for figure in (accuracy_plot(rows), cost_plot(rows)):
        figure.draw_without_rendering()
        assert figure.axes[0].get_position().width > 0.35
        assert figure.axes[0].get_position().height > 0.5


@pytest.mark.parametrize("share", [1e-6, 0.001, 0.1, 0.13, 1.0])
def test_the_axis_of_shares_has_figures_on_both_sides(share: float) -> None:
    only = run("lora", 0.9, None, trainable=share * 1e9, total=1e9)
    low, high = cost_plot([only]).axes[0].get_xlim()
    assert low < 100 * share <= high <= 100
    assert math.log10(low) == pytest.approx(round(math.log10(low)))


def test_a_png_is_written(tmp_path: Path) -> None:
    save_png(accuracy_plot(example()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
