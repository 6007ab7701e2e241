"""The Pareto front against its definition, and where plots of costs draw it."""

import numpy as np
import pytest

from deltafit.experiments.cost_plots import MEMORY, SHARE, TIME, Cost, cost_plot
from deltafit.experiments.pareto import pareto_front
from tests.experiments.figures import assert_inside, texts
from tests.experiments.rows import difference, example, row, run


def by_definition(points: list[tuple[float, float]]) -> set[int]:
    return {
        i
        for i, (cost, result) in enumerate(points)
        if not any(c <= cost and r >= result and (c, r) != (cost, result) for c, r in points)
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_beats(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Few values, so that costs, results and whole points are equal.
    points = [(float(c), float(r)) for c, r in generator.integers(0, 6, size=(25, 2))]
    front = pareto_front(points)
    assert set(front) == by_definition(points)
    assert [points[i] for i in front] == sorted(points[i] for i in front)
    assert pareto_front([]) == []


@pytest.mark.parametrize("cost", [SHARE, TIME, MEMORY], ids=lambda cost: cost.title)
def test_the_front_is_named_and_nothing_leaves_the_picture(cost: Cost) -> None:
    figure = cost_plot(example(), cost)
    assert_inside(figure)
    shown = texts(figure)
    assert "Pareto front: nothing gets more for less" in shown
    best = "93.8  lora rank=16 alpha=32 targets=all-linear  (front)"
    assert any(" ".join(text.split()) == " ".join(best.split()) for text in shown)
    assert not any("TF-IDF" in text and "front" in text for text in shown if cost is SHARE)


def test_worse_beyond_noise_is_hollow() -> None:
    rows = [
        run("best", 0.9, None, trainable=100),
        run("tied", 0.89, difference(-1, 2), trainable=200),
        run("worse", 0.8, difference(-10, 2), trainable=300),
    ]
    faces = {
        line.get_xydata()[0][1]: line.get_markerfacecolor()
        for axes in cost_plot(rows).axes
        for line in axes.get_lines()
        if line.get_marker() == "o" and len(line.get_xydata())
    }
    assert {value: face == "white" for value, face in faces.items()} == {
        90: False,
        89: False,
        80: True,
    }


def test_costs_of_like_size_are_drawn_on_a_plain_axis_and_others_by_powers() -> None:
    near = [run("a", 0.9, None, seconds=100.0), run("b", 0.8, difference(-9, 1), seconds=300.0)]
    far = [*near, run("c", 0.7, difference(-9, 1), seconds=9000.0)]
    assert cost_plot(near, TIME).axes[0].get_xscale() == "linear"
    assert cost_plot(far, TIME).axes[0].get_xscale() == "log"
    alone = cost_plot(near[:1], TIME).axes[0].get_xlim()
    assert alone[0] < 100 < alone[1]


def test_a_baseline_that_took_no_time_has_no_place_on_that_axis() -> None:
    rows = [row("majority", "baseline", 0.5, difference(-40, 1), seconds=0.0), run("a", 0.9, None)]
    assert TIME.of(rows[0]) is None
    assert_inside(cost_plot(rows, TIME))
