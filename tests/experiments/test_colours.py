"""Colours that people with any colour vision tell apart, and never colour alone.

What they see is simulated by the matrices of Machado, Oliveira and Fernandes (2009), "A
physiologically-based model for simulation of color vision deficiency", IEEE Transactions on
Visualization and Computer Graphics 15(6), at full severity, on linear RGB.
"""

import ast
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

import deltafit.experiments
from deltafit.experiments.answers import answers_of
from deltafit.experiments.calibration import calibration_plot, reliability
from deltafit.experiments.class_plot import class_difference_plot
from deltafit.experiments.cost_plots import TIME, cost_plot
from deltafit.experiments.drawing import BLUE, GREY, ORANGE
from deltafit.experiments.grid_plot import grid_plot, grids, span_of
from deltafit.experiments.plots import accuracy_plot
from deltafit.experiments.rank_curve import rank_curve
from deltafit.experiments.rank_plot import matrix_plot, rank_plot
from deltafit.experiments.rank_rows import compared_ranks
from deltafit.experiments.rate_plot import rate_plot
from deltafit.experiments.run_plots import class_f1_plot, confusion_plot, loss_plot
from tests.experiments.rows import example
from tests.experiments.test_calibration import scores
from tests.experiments.test_class_plot import DIFFERENCES
from tests.experiments.test_grid_plot import grid
from tests.experiments.test_ranks import rank_row
from tests.experiments.test_run_plots import history, measured
from tests.experiments.test_trials_report import rows as tuned_rows

VISIONS = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
SRGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
APART = 20  # CIELAB's ΔE of 1976; about 2.3 is just noticed side by side


def seen(colour: object, vision: str) -> np.ndarray:
    """CIELAB under D65 of a colour as somebody sees it."""
    encoded = np.array(to_rgb(colour))  # type: ignore[arg-type]
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    light = np.clip(VISIONS[vision] @ light, 0, 1)
    shares = (SRGB_TO_XYZ @ light) / SRGB_TO_XYZ.sum(axis=1)
    bent = np.where(shares > (6 / 29) ** 3, np.cbrt(shares), shares * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = bent
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: object, other: object, vision: str) -> float:
    return math.dist(seen(one, vision), seen(other, vision))


def losses(steps: int) -> list[dict[str, float]]:
    return [{**each, "validation_loss": 1.0 + each["step"]} for each in history(steps)]


def calibration() -> Figure:
    labels, logits = scores(1)
    found = reliability(labels, answers_of(logits))
    assert found is not None
    return calibration_plot({"lora": found})


WRONG = {0: 90, 1: 18, 2: 15, 4: 12, 8: 13, 16: 12}
FIGURES: dict[str, Callable[[], Figure]] = {
    "accuracy_plot": lambda: accuracy_plot(example()),
    "cost_plot": lambda: cost_plot(example(), TIME),
    "calibration_plot": calibration,
    "class_difference_plot": lambda: class_difference_plot(DIFFERENCES),
    "grid_plot": lambda: grid_plot(grids(grid())[0], span_of(grids(grid()))),
    "loss_plot": lambda: loss_plot({"a": [losses(30), losses(30)], "b": [losses(900)]}),
    "confusion_plot": lambda: confusion_plot(measured(6), "a"),
    "class_f1_plot": lambda: class_f1_plot(measured(6), "a"),
    "rank_plot": lambda: rank_plot({"layer.0.query": 3, "layer.1.query": 1}, "a"),
    "matrix_plot": lambda: matrix_plot({"layer.0.query": 0.3}, "a", "%", str),
    "rank_curve": lambda: rank_curve(
        compared_ranks([rank_row(rank, wrong) for rank, wrong in WRONG.items()]), "a"
    ),
    "rate_plot": lambda: rate_plot(tuned_rows(), "accuracy"),
}


def test_every_function_that_draws_is_looked_at() -> None:
    drawing = set()
    for path in Path(deltafit.experiments.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name):
                drawing |= {node.name} if node.returns.id == "Figure" else set()
    assert drawing == set(FIGURES)


@pytest.mark.parametrize("vision", VISIONS)
def test_the_palette_is_told_apart(vision: str) -> None:
    for one, other in itertools.combinations((BLUE, ORANGE, GREY), 2):
        assert distance(one, other, vision) > APART
    for colour in (BLUE, ORANGE, GREY):
        assert distance(colour, "white", vision) > APART


def test_the_simulation_knows_colours_that_are_not() -> None:
    """Red and green of matplotlib's own cycle, blue and purple of it."""
    assert distance("#d62728", "#2ca02c", "all cones") > 100
    assert distance("#d62728", "#2ca02c", "deuteranopia") < APART / 2
    assert distance("#1f77b4", "#9467bd", "protanopia") < APART / 2
    assert distance("#0000ff", "#007070", "all cones") > 80
    assert distance("#007777", "#0080a0", "tritanopia") < APART
    for vision in VISIONS:  # greys stay what they are
        assert distance(GREY, "#767676", vision) == 0
        assert abs(seen(GREY, vision)[1:]).max() < 1
    assert seen("white", "all cones") == pytest.approx([100, 0, 0], abs=0.02)


@pytest.mark.parametrize("vision", VISIONS)
def test_shades_get_darker_for_everybody(vision: str) -> None:
    shades = [seen(matplotlib.colormaps["Blues"](x)[:3], vision)[0] for x in np.linspace(0, 1, 11)]
    assert all(darker < lighter - 2 for lighter, darker in itertools.pairwise(shades))


def colours_of(artist: Artist) -> Iterator[object]:
    if isinstance(artist, Line2D) and len(artist.get_xydata()):
        if artist.get_linestyle() != "None":
            yield artist.get_color()
        if artist.get_marker() not in ("", "None", None):
            yield from (artist.get_markerfacecolor(), artist.get_markeredgecolor())
    elif isinstance(artist, Patch):
        both = artist.get_facecolor(), artist.get_edgecolor()
        yield from (colour for colour in both if colour[3])  # what is not transparent
    elif isinstance(artist, Text) and artist.get_text():
        yield artist.get_color()
    elif isinstance(artist, Collection) and artist.get_array() is None:
        yield from (*artist.get_facecolor(), *artist.get_edgecolor())


@pytest.mark.parametrize("name", FIGURES)
def test_no_plot_has_a_colour_besides(name: str) -> None:
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    known = {to_rgb(BLUE), to_rgb(ORANGE)}
    for artist in figure.findobj():
        for colour in colours_of(artist):
            red, green, blue = to_rgb(colour)  # type: ignore[arg-type]
            assert red == green == blue or (red, green, blue) in known, (artist, colour)
    images = [image for axes in figure.axes for image in axes.images]
    assert all(image.get_cmap().name == "Blues" for image in images)


def marks(figure: Figure) -> dict[object, set[tuple[str, bool]]]:
    """Shape and hollowness of single points, by their colour."""
    found: dict[object, set[tuple[str, bool]]] = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            if line.get_marker() not in ("", "None", None) and len(line.get_xydata()):
                if not isinstance(line.get_marker(), str):  # the stroke of a broken axis
                    continue
                edge, face = (
                    to_rgb(of())  # type: ignore[operator]
                    for of in (line.get_markeredgecolor, line.get_markerfacecolor)
                )
                shape = str(line.get_marker()), face == to_rgb("white")
                found.setdefault(edge, set()).add(shape)
    return found


@pytest.mark.parametrize("name", ["accuracy_plot", "cost_plot", "rank_curve", "rate_plot"])
def test_marks_of_different_colours_have_different_shapes(name: str) -> None:
    found = marks(FIGURES[name]())
    assert len(found) >= 2
    for one, other in itertools.combinations(found.values(), 2):
        assert not one & other


@pytest.mark.parametrize("steps", [1, 30, 40, 41, 900])
@pytest.mark.parametrize("seeds", [1, 2])
def test_training_and_validation_differ_in_stroke_or_marker(steps: int, seeds: int) -> None:
    figure = loss_plot({"a": [losses(steps)] * seeds})
    styles: dict[object, set[tuple[str, str]]] = {}
    lines = [*figure.axes[0].get_lines(), *figure.legends[0].get_lines()]
    for line in lines:
        style = str(line.get_linestyle()), str(line.get_marker())
        styles.setdefault(line.get_color(), set()).add(style)
    training, validation = styles[BLUE], styles[ORANGE]
    assert len(lines) >= 4 and not training & validation
    if steps > 1:
        assert not {stroke for stroke, _ in training} & {stroke for stroke, _ in validation}
    else:  # of one point there is no stroke
        assert {marker for _, marker in training} != {marker for _, marker in validation}
