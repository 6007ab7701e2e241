"""A grid is found where runs differ in rank and α alone; its ties are marked as ties."""

from typing import Any

from deltafit.experiments.grid_plot import grid_plot, grids
from deltafit.methods import Full, LoRA, Method
from tests.experiments.figures import assert_inside, texts
from tests.experiments.rows import difference, row, run


def of(method: Method, after: float, compared: dict[str, Any] | None) -> dict[str, Any]:
    return run(str(method), after, compared, settings=method.to_dict())


def grid() -> list[dict[str, Any]]:
    tied, worse = difference(-0.3, 1), difference(-3, 1)
    return [
        of(LoRA(rank=4, alpha=8), 0.90, worse),
        of(LoRA(rank=4, alpha=32), 0.928, tied),
        of(LoRA(rank=16, alpha=8), 0.929, tied),
        of(LoRA(rank=16, alpha=32), 0.931, None),
    ]


def test_a_grid_is_shaded_and_its_best_and_ties_are_marked() -> None:
    (found,) = grids(grid())
    assert (found.method, found.ranks, found.alphas) == ("lora", (4, 16), (8, 32))
    figure = grid_plot(found)
    assert_inside(figure)
    assert {"90.0", "92.8 tie", "92.9 tie", "93.1 best", "rank", "α"} <= texts(figure)
    assert len(figure.axes[0].patches) == 3  # frames, so that colour says nothing alone


def test_a_cell_may_be_missing_but_not_most() -> None:
    (found,) = grids(grid()[:3])
    assert_inside(grid_plot(found))
    assert grids(grid()[1:3]) == []


def test_other_settings_make_other_grids() -> None:
    others = [
        of(LoRA("all-linear", rank=rank, alpha=alpha), 0.9, difference(-3, 1))
        for rank in (4, 16)
        for alpha in (8, 32)
    ]
    assert len(grids([*grid(), *others])) == 2
    assert grids([*grid()[:2], *others[2:]]) == []


def test_runs_without_rank_or_in_one_line_are_no_grid() -> None:
    line = [of(LoRA(rank=rank), 0.9, difference(-1, 2)) for rank in (2, 4, 8)]
    full = of(Full(), 0.9, difference(-1, 2))
    assert grids([*line, full, row("TF-IDF", "baseline", 0.8, difference(-9, 1))]) == []
    assert grids([]) == []


def test_equal_results_make_a_picture_too() -> None:
    rows = [{**each, "after": 0.5} for each in grid()]
    assert_inside(grid_plot(grids(rows)[0]))
