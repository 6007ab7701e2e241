"""A grid is found where runs differ in rank and α alone; its ties are those of the statistics."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deltafit.experiments.differences import with_differences
from deltafit.experiments.grid_plot import Grid, grid_plot, grid_table, grids, mark_of, span_of
from deltafit.experiments.recipe import Entry, experiment_of
from deltafit.experiments.together import paired_over_seeds
from deltafit.methods import AdaLoRA, Full, LoRA, Method
from tests.experiments.figures import assert_inside, texts
from tests.experiments.rows import difference, row, run
from tests.experiments.searches import recipe_with


def of(
    method: Method, after: float, compared: dict[str, Any] | None, **known: Any
) -> dict[str, Any]:
    return run(str(method), after, compared, settings=method.to_dict(), **known)


def grid() -> list[dict[str, Any]]:
    tied, worse = difference(-0.3, 1), difference(-3, 1)
    return [
        of(LoRA(rank=4, alpha=8), 0.90, worse),
        of(LoRA(rank=4, alpha=32), 0.928, tied),
        of(LoRA(rank=16, alpha=8), 0.929, tied),
        of(LoRA(rank=16, alpha=32), 0.931, None),
    ]


def drawn(found: Grid) -> Figure:
    return grid_plot(found, span_of([found]))


def cells_of(figure: Figure) -> dict[tuple[int, float], tuple[str, float]]:
    """What is written in each cell, and how wide its frame is: 0 without one."""
    axes = figure.axes[0]
    ranks = [int(label.get_text()) for label in axes.get_yticklabels()]
    alphas = [float(label.get_text()) for label in axes.get_xticklabels()]
    frames = {
        tuple(map(round, patch.get_center())): patch.get_linewidth()
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    }
    found = {}
    for text in axes.texts:
        x, y = map(round, text.get_position())
        found[ranks[y], alphas[x]] = (text.get_text(), frames.get((x, y), 0.0))
    return found


def test_a_grid_is_shaded_and_its_best_and_ties_are_marked() -> None:
    (found,) = grids(grid())
    assert (found.title, found.ranks, found.alphas) == ("lora", (4, 16), (8, 32))
    figure = drawn(found)
    assert_inside(figure)
    assert {"90.0", "92.8 tie", "92.9 tie", "93.1 best", "rank", "α"} <= texts(figure)
    assert len(figure.axes[0].patches) == 3  # frames, so that colour says nothing alone
    cells = cells_of(figure)
    assert cells[4, 8] == ("90.0", 0)
    assert cells[16, 32][0] == "93.1\nbest" and cells[16, 32][1] > cells[4, 32][1] > 0
    shades = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shades, [[90.0, 92.8], [92.9, 93.1]])


def test_the_table_has_the_same_figures_and_marks() -> None:
    (found,) = grids(grid()[:3])
    table = grid_table(found)
    assert table.headers == ["accuracy %", "α 8", "α 32"]
    assert table.rows == [["rank 4", "90.0", "92.8 tie"], ["rank 16", "92.9 tie", "–"]]
    assert [(r["rank"], r["alpha"], r["after"], r["mark"]) for r in table.records] == [
        *((4, 8, 0.90, ""), (4, 32, 0.928, "tie"), (16, 8, 0.929, "tie")),
    ]


def test_a_cell_may_be_missing_but_not_most() -> None:
    (found,) = grids(grid()[:3])
    figure = drawn(found)
    assert_inside(figure)
    assert cells_of(figure)[16, 32] == ("–", 0)
    assert grids(grid()[1:3]) == []


def test_other_settings_make_other_grids() -> None:
    others = [
        of(LoRA("all-linear", rank=rank, alpha=alpha), 0.9, difference(-3, 1))
        for rank in (4, 16)
        for alpha in (8, 32)
    ]
    first, second = grids([*grid(), *others])
    assert (first.apart, second.apart) == ("target_modules=None", "target_modules=all-linear")
    assert grids([*grid()[:2], *others[2:]]) == []
    mixed = [of(AdaLoRA(rank=r, alpha=a), 0.9, difference(-3, 1)) for r in (4, 8) for a in (8, 32)]
    assert [found.title for found in grids([*grid(), *mixed])] == ["lora", "adalora"]


@pytest.mark.parametrize("name", ["learning_rate", "epochs", "warmup"])
def test_hyperparameters_make_other_grids_and_no_row_is_lost(name: str) -> None:
    """The rows of a recipe whose grid goes through a hyperparameter besides rank and α."""
    values = {"learning_rate": [1e-4, 1e-3], "epochs": [2, 5], "warmup": [0.0, 0.2]}[name]
    over: dict[str, list[Any]] = {name: values, "rank": [4, 16], "alpha": [8, 16, 32]}
    experiment = experiment_of(recipe_with(Entry("lora", grid=over), Entry("full")))
    varied = experiment.varied()
    rows = [
        of(arm.method, 0.5 + index / 100, difference(-1, 2)) | {
            "name": arm.name,
            "varied": varied[arm.name],
            "learning_rate": experiment.runs_of(arm)[0].learning_rate,
        }
        for index, arm in enumerate(experiment.arms)
    ]  # fmt: skip
    found = grids(rows)
    assert [each.title for each in found] == [f"lora, {name}={value}" for value in values]
    seen = [cell["name"] for each in found for cell in each.cells.values()]
    assert sorted(seen) == sorted(each["name"] for each in rows[:-1])
    for each, value in zip(found, values, strict=True):
        for (rank, alpha), cell in each.cells.items():
            (arm,) = (arm for arm in experiment.arms if arm.name == cell["name"])
            assert (arm.method, getattr(arm.settings, name)) == (
                LoRA(rank=rank, alpha=alpha),
                value,
            )
    figures = [grid_plot(each, span_of(found)) for each in found]
    assert len({figure.axes[0].images[0].get_clim() for figure in figures}) == 1  # same shades
    shown = [text for figure in figures for text, _ in cells_of(figure).values()]
    assert len(set(shown)) == len(rows) - 1


def test_what_a_search_chose_is_no_other_setting_and_takes_no_cell_away() -> None:
    tuned = [
        {**each, "searched": ["learning_rate"], "learning_rate": 1e-3 / (index + 1)}
        for index, each in enumerate(grid())
    ]
    (found,) = grids(tuned)
    assert len(found.cells) == 4 and found.apart == ""
    again = [{**each, "name": f"{each['name']} again"} for each in tuned]
    assert [len(each.cells) for each in grids([*tuned, *again])] == [4, 4]
    assert grids([{**each, "searched": ["rank"]} for each in grid()]) == []


def test_runs_without_rank_or_in_one_line_are_no_grid() -> None:
    line = [of(LoRA(rank=rank), 0.9, difference(-1, 2)) for rank in (2, 4, 8)]
    full = of(Full(), 0.9, difference(-1, 2))
    assert grids([*line, full, row("TF-IDF", "baseline", 0.8, difference(-9, 1))]) == []
    assert grids([]) == []


def test_equal_results_make_a_picture_too() -> None:
    rows = [{**each, "after": 0.5} for each in grid()]
    assert_inside(drawn(grids(rows)[0]))


def test_marks_are_those_of_comparisons_corrected_for_all_rows() -> None:
    """Some cells are as good as the best, some worse alone and not among all, some worse."""
    right = np.arange(1000) < 900
    kinds = {}
    correct, rows = [], []
    for index, (rank, alpha) in enumerate(product((4, 8, 16, 32), (4, 8, 16, 32))):
        kind = "best" if index == 5 else ("equal", "undecided", "worse")[index % 3]
        answers = right.copy()
        if kind == "equal":
            answers[[index, 900 + index]] = False, True
            answers[500] = False
        elif kind == "undecided":
            answers[:22], answers[990:998] = False, True
        elif kind == "worse":
            answers[:60] = False
        kinds[rank, alpha] = kind
        correct.append(answers[None])
        rows.append(of(LoRA(rank=rank, alpha=alpha), float(answers.mean()), None))
    best = correct[5]
    for kind, answers in zip(kinds.values(), correct, strict=True):
        alone = paired_over_seeds(answers, best)
        assert alone.within_noise == (kind in ("best", "equal")), kind
    (found,) = grids(with_differences(rows, correct))
    marks = {place: mark_of(cell) for place, cell in found.cells.items()}
    expected = {"best": "best", "equal": "tie", "undecided": "undecided", "worse": ""}
    assert marks == {place: expected[kind] for place, kind in kinds.items()}
    figure = drawn(found)
    dashed = [frame.get_linestyle() in ("--", "dashed") for frame in figure.axes[0].patches]
    assert 0 < sum(dashed) == [*kinds.values()].count("undecided") < len(dashed)
    for place, (text, frame) in cells_of(figure).items():
        assert (text.partition("\n")[2], frame > 0) == (marks[place], kinds[place] != "worse")
