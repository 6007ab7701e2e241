"""What a report shows of a search is what its trials came to."""

import csv
import io
from dataclasses import replace
from pathlib import Path

from deltafit.experiments.page_parts import Section
from deltafit.experiments.rate_plot import rate_plot
from deltafit.experiments.recipe import Entry, arms_of
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import spaces_of
from deltafit.experiments.trials import best_of
from deltafit.experiments.trials_report import search_facts, search_section, trials_csv
from deltafit.experiments.tuning import TunedRow
from deltafit.tasks.metrics import find_metric
from tests.experiments.searches import RATES, Formula, recipe_with, searched

SEARCH = Search(
    {"learning_rate": RATES, "rank": [2, 4]}, 9, minutes=7, parameters=9999,
    pruning="successive-halving",
)  # fmt: skip


def rows() -> list[TunedRow]:
    recipe = recipe_with(Entry("lora"), Entry("head"), Entry("full", "all"), search=SEARCH)
    found = []
    for space in spaces_of(recipe, arms_of(recipe)):
        trials = tuple(searched(space, replace(SEARCH, minutes=None), Formula(limit=2e-3), seed=3))
        found.append(TunedRow(space, trials, best_of(trials, find_metric("accuracy"))))
    return found


def section(*, tested: bool = True) -> Section:
    return search_section(rows(), SEARCH, "accuracy", 3, tested=tested)


def test_every_trial_is_a_line() -> None:
    made = rows()
    text = trials_csv(made, "accuracy", lambda trial: Path("runs") / str(trial.number))
    lines = [*csv.DictReader(io.StringIO(text))]
    assert len(lines) == 27 and [line["row"] for line in lines[::9]] == ["lora", "head", "all"]
    for line, trial in zip(lines, made[0].trials, strict=False):
        assert float(line["learning_rate"]) == trial.chosen["learning_rate"]
        assert int(line["rank"]) == trial.chosen["rank"] and line["state"] == trial.state
        assert len(line["evaluations"].split()) == len(trial.figures) == float(line["epochs"])
        assert (line["validation_accuracy"] == "") == (trial.state != "finished")
        assert line["folder"] == f"runs/{trial.number}"
    assert {line["state"] for line in lines} == {"finished", "pruned", "failed"}
    assert sum(line["chosen"] == "true" for line in lines) == 3
    assert {line["rank"] for line in lines[9:]} == {""}


def test_the_section_says_what_was_chosen_and_by_what() -> None:
    found = section()
    chosen, picture, tried = found.parts
    assert chosen.table is not None and tried.table is not None and picture.figure is not None
    for line, row in zip(chosen.table.rows, rows(), strict=True):
        assert row.chosen is not None and row.chosen.result is not None
        assert line[:2] == [row.space.row.name, "9"]
        assert f"learning_rate={row.chosen.chosen['learning_rate']:g}" in line[5]
        assert line[6] == f"{100 * row.chosen.result[0]:.1f}"
    assert len(tried.table.rows) == 27 and tried.folded
    assert sum(line[2] == "chosen" for line in tried.table.rows) == 3
    for said in (
        "up to 9 trials",
        "had no part in it",
        "second, fourth",
        "after 7 minutes",
        "9,999",
    ):
        assert said in found.text
    assert "flatters every figure" in section(tested=False).text
    facts = search_facts(rows(), SEARCH)
    assert facts["space"]["head"] == "learning_rate 1e-05 to 0.1 in equal factors"
    assert (facts["trials"], facts["minutes"], facts["parameters"]) == (9, 7, 9999)


def test_a_row_without_a_finished_trial_has_nothing_chosen() -> None:
    row = replace(rows()[0], chosen=None)
    (part, *_) = search_section([row], SEARCH, "accuracy", 3, tested=True).parts
    assert part.table is not None and part.table.rows[0][5:] == ["–", "–"]


def test_the_picture_has_every_trial_at_its_rate_and_the_chosen_one_marked() -> None:
    made = rows()
    figure = rate_plot(made, "accuracy")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["lora", "head", "all"]
    for row, axes in zip(made, panels, strict=True):
        marks = [
            (line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in axes.lines
        ]
        for trial, (x, y, marker) in zip(row.trials, marks, strict=True):
            assert x == trial.chosen["learning_rate"]
            figures = trial.figures[-1] if trial.result is None else trial.result[0]
            assert y == 100 * figures
            assert (marker == "*") == (trial is row.chosen)
            assert (marker == "s") == (trial.state != "finished")
        assert axes.get_xscale() == "log"
        assert axes.xaxis.get_major_formatter()(1e-3) == "0.001", "no mathematics"
