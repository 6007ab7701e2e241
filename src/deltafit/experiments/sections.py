"""The parts of a report's page below its table: each says in words what its picture shows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

from deltafit.experiments.answers import Evidence
from deltafit.experiments.calibration import calibration_plot, format_error, reliability
from deltafit.experiments.class_sections import class_sections
from deltafit.experiments.cost_plots import COSTS, cost_plot, cost_table
from deltafit.experiments.grid_plot import Grid, grid_plot, grid_table, grids, mark_of, span_of
from deltafit.experiments.matrix_sections import changes_section, ranks_section
from deltafit.experiments.page_parts import MOST_RUNS, Part, Section, Table
from deltafit.experiments.run_plots import History, loss_plot
from deltafit.experiments.tables import Row
from deltafit.experiments.verdict import advised
from deltafit.experiments.words import named


def sections_of(
    rows: Sequence[Row],
    histories: Mapping[str, Sequence[History]],
    ranks: Mapping[str, Mapping[str, int]],
    evidence: Evidence | None,
) -> list[Section]:
    """Return the sections for which there are figures, in the order of the page.

    Args:
        rows: of the comparison.
        histories: of each row's runs, by the row's name.
        ranks: those of each run's matrices, by the run's name.
        evidence: what methods said and changed.
    """
    judged = [row for row in rows if not row.get("failure")]
    sections = [_costs(judged), _grids(judged), _losses(histories)]
    if evidence is not None:
        sections += [*class_sections(judged, evidence), _calibration(judged, evidence)]
        sections.append(changes_section(judged, evidence))
    sections.append(ranks_section(ranks))
    return [section for section in sections if section.parts]


def _costs(rows: Sequence[Row]) -> Section:
    parts = [
        Part(f"Result against {cost.name}.", partial(cost_plot, rows, cost))
        for cost in COSTS
        if any(cost.of(row) for row in rows)
    ]
    if parts:
        caption = "Every method's costs, and of which of them it lies on the Pareto front."
        parts.append(Part(caption, table=cost_table(rows), folded=True))
    text = (
        "On a Pareto front nothing gets more for less. It follows the measured figures; of two "
        "methods within noise of each other either could be on it."
    )
    if len({row.get("conditions") for row in rows} - {None}) > 1:
        text += " Not all rows were timed under the same conditions: of time the front says little."
    legend = (
        "The grey line is the front. Hollow markers are worse than the best beyond noise. Dashed "
        "lines are baselines whose cost in this is not known."
    )
    return Section("costs", "Result against cost", text, parts, legend)


def _grids(rows: Sequence[Row]) -> Section:
    best = next((row["name"] for row in rows if row.get("difference") is None), None)
    chosen = advised(rows)
    found = sorted(grids(rows), key=lambda grid: not _holds(grid, chosen))
    parts = []
    for index, grid in enumerate(found):
        marks = [mark_of(row) for row in grid.cells.values()]
        best_or_tied = marks.count("best") + marks.count("tie")
        undecided = marks.count("undecided")
        caption = (
            f"{grid.title} by rank and α: {best_or_tied} of {len(marks)} cells are the best "
            f"of the whole comparison ({best}) or tie with it"
            f"{f'; {undecided} are undecided' if undecided else ''}."
        )
        figure = partial(grid_plot, grid, span_of(found))
        parts.append(Part(caption, figure, grid_table(grid), folded=index > 0))
    several = ""
    if len(found) > 1:
        several = f" There are {len(found)} grids, one for each combination of the other settings"
        several += "; the advised method's comes first." if _holds(found[0], chosen) else "."
    outside = [
        str(row["name"])
        for row in rows
        if {"rank", "alpha"} <= {*(row.get("settings") or ())}
        and not any(_holds(grid, row) for grid in found)
    ]
    if outside:
        several += f" In no grid, for want of others beside them: {named(outside)}."
    text = (
        "A cell marked “tie” is within noise of the best: the interval of its difference includes "
        "0. Among these the figures do not decide, and the cheapest will do. One marked "
        "“undecided” is worse looked at alone, and not after correction for all rows."
        f"{several}"
    )
    legend = "The best and its ties are framed, and undecided cells have a dashed frame."
    return Section("grid", "Rank and α", text, parts, legend)


def _holds(grid: Grid, row: Row | None) -> bool:
    return any(cell is row for cell in grid.cells.values())


def _losses(histories: Mapping[str, Sequence[History]]) -> Section:
    parts = []
    if any(history for runs in histories.values() for history in runs):
        caption = "Training and validation loss, one panel a method, on shared axes."
        if any(len(runs) > 1 for runs in histories.values()):
            caption += " Every seed has a thin line, their mean a thick one."
        across = 2 if len(histories) <= MOST_RUNS else 3
        parts.append(Part(caption, partial(loss_plot, histories, across)))
    text = "A validation loss that rises while training falls is learning by heart."
    return Section("loss", "Loss in training", text, parts)


def _calibration(rows: Sequence[Row], evidence: Evidence) -> Section:
    curves, unknown = {}, []
    for row in rows:
        answers = evidence.answers.get(row["name"])
        found = None if answers is None else reliability(evidence.labels, answers)
        if found is None:
            unknown.append(str(row["name"]))
        else:
            curves[str(row["name"])] = found
    worst_last = sorted(
        curves, key=lambda name: sum(curves[name].errors) / len(curves[name].errors)
    )
    table = Table(
        ["method", "expected calibration error"],
        [[name, format_error(curves[name].errors)] for name in worst_last],
        [{"method": name, **asdict(curves[name])} for name in worst_last],
    )
    missing = f" {named(unknown)}: no probabilities, so no calibration." if unknown else ""
    text = (
        "The expected calibration error is the mean gap between confidence (the largest "
        "probability of a row) and accuracy over 15 bins of equal width, weighted by their rows; "
        "of several seeds their mean, with the smallest and the largest. Nothing was recalibrated."
        f"{missing}"
    )
    caption = "Reliability of each method, the rows of all seeds together."
    parts = [
        Part(caption, partial(calibration_plot, curves)),
        Part("Calibration errors as a table, the best calibrated first.", table=table, folded=True),
    ]
    legend = (
        "A point on the diagonal is right as often as it says. Below it a method is too sure of "
        "itself."
    )
    return Section("calibration", "Calibration", text, parts if curves else [], legend)
