"""Where an axis is broken, how its panels share the picture, how names fold."""

import pytest
from matplotlib.figure import Figure

from deltafit.experiments.drawing import axis_parts, broken_panels, panel_sizes, wrapped

LIMITS = (0.0, 100.0)


@pytest.mark.parametrize(
    ("spans", "parts"),
    [
        ([(93, 95)], [(92.5, 95.5)]),
        ([(1, 2), (92, 94)], [(0, 99.58)]),  # two are apart on any axis
        ([(50, 52), (66, 70), (73, 77)], [(48.38, 78.62)]),
        ([(1, 2), (88, 90), (93, 94)], [(0.5, 2.5), (87.5, 94.5)]),
        ([(88, 90), (93, 94), (1, 2)], [(0.5, 2.5), (87.5, 94.5)]),
        ([(1, 2), (41, 43), (88, 90), (93, 94)], [(0.5, 2.5), (40.5, 43.5), (87.5, 94.5)]),
        ([(97, 97.1), (99, 99.2), (99.1, 100)], [(96.5, 100)]),  # too near to leave a gap out
        ([(0, 0), (99, 100), (100, 100)], [(0, 0.5), (98.5, 100)]),
        ([(10, 90), (20, 21), (89, 91)], [(5.14, 95.86)]),
    ],
)
def test_an_axis_is_broken_only_where_that_shows_more(
    spans: list[tuple[float, float]], parts: list[tuple[float, float]]
) -> None:
    found = axis_parts(spans, LIMITS, least=0.5)
    assert found == [pytest.approx(part) for part in parts]
    for low, high in spans:
        assert any(start <= low and high <= end for start, end in found)


@pytest.mark.parametrize("wanted", [[3.0], [1.0, 1.0], [11.0, 1.0], [1.0, 40.0, 1.0]])
def test_no_panel_is_lost(wanted: list[float]) -> None:
    sizes = panel_sizes(wanted)
    assert sum(sizes) == pytest.approx(1)
    assert min(sizes) > 0.13
    assert sorted(sizes) == [sizes[i] for i in sorted(range(len(sizes)), key=wanted.__getitem__)]


@pytest.mark.parametrize("axis", ["x", "y"])
def test_panels_are_in_order_and_of_their_sizes(axis: str) -> None:
    figure = Figure(layout="constrained")
    lower, upper = broken_panels(figure, axis, [(0, 1), (90, 100)], [0.25, 0.75])
    figure.draw_without_rendering()
    limits = [getattr(axes, f"get_{axis}lim")() for axes in (lower, upper)]
    assert limits == [(0, 1), (90, 100)]
    below, above = lower.get_position(), upper.get_position()
    along = ("x0", "width") if axis == "x" else ("y0", "height")
    assert getattr(below, along[0]) < getattr(above, along[0])
    ratio = getattr(above, along[1]) / getattr(below, along[1])
    assert ratio == pytest.approx(3, rel=0.1)


def test_names_fold_at_commas_and_spaces_and_stay_what_they_are() -> None:
    name = "lora:rank=8,alpha=16,target_modules=query,key,value,dense"
    folded = wrapped(name)
    assert folded.replace("\n", "") == name
    assert all(line.endswith(",") for line in folded.splitlines()[:-1])
    assert wrapped("frozen features + logistic regression").replace("\n", " ") == (
        "frozen features + logistic regression"
    )
    assert len(wrapped(",".join(f"layer{i}" for i in range(99))).splitlines()) == 3
    assert wrapped("") == ""
