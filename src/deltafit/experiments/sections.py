"""The parts of a report's page below its table: each says in words what its picture shows."""

from collections.abc import Mapping, Sequence
from functools import partial

from deltafit.adapters.movement import LARGEST_SIDE, MatrixChange
from deltafit.experiments.answers import Evidence
from deltafit.experiments.calibration import calibration_plot, format_error, reliability
from deltafit.experiments.class_sections import class_sections
from deltafit.experiments.cost_plots import MEMORY, SHARE, TIME, Cost, cost_plot
from deltafit.experiments.grid_plot import grid_plot, grids, mark_of
from deltafit.experiments.page_parts import MOST_RUNS, Part, Section, Table
from deltafit.experiments.rank_plot import matrix_plot, rank_plot
from deltafit.experiments.run_plots import History, loss_plot
from deltafit.experiments.tables import Row
from deltafit.experiments.verdict import listing


def sections_of(
    rows: Sequence[Row],
    histories: Mapping[str, History],
    ranks: Mapping[str, Mapping[str, int]],
    evidence: Evidence | None,
) -> list[Section]:
    """Return the sections for which there are figures, in the order of the page."""
    judged = [row for row in rows if not row.get("failure")]
    sections = [_costs(judged), _grids(judged), _losses(histories)]
    if evidence is not None:
        sections += [*class_sections(judged, evidence), _calibration(judged, evidence)]
        sections.append(_changes(evidence.changes))
    sections.append(_ranks(ranks))
    return [section for section in sections if section.parts]


def _costs(rows: Sequence[Row]) -> Section:
    kinds: tuple[tuple[str, Cost], ...] = (
        *(("the share of parameters trained", SHARE), ("training time", TIME)),
        ("peak memory", MEMORY),
    )
    parts = [
        Part(f"Result against {what}.", partial(cost_plot, rows, cost))
        for what, cost in kinds
        if any(cost.of(row) for row in rows)
    ]
    text = (
        "The grey line is the Pareto front: nothing gets more for less. It follows the measured "
        "figures; of two methods within noise of each other either could be on it. Hollow markers "
        "are worse than the best beyond noise. Dashed lines are baselines whose cost in this is "
        "not known."
    )
    return Section("costs", "Result against cost", text, parts)


def _grids(rows: Sequence[Row]) -> Section:
    best = next((row["name"] for row in rows if row.get("difference") is None), None)
    parts = []
    for grid in grids(rows):
        marked = [row for row in grid.cells.values() if mark_of(row)]
        caption = (
            f"{grid.method} by rank and α: {len(marked)} of {len(grid.cells)} cells are the best "
            f"of the whole comparison ({best}) or tie with it."
        )
        parts.append(Part(caption, partial(grid_plot, grid)))
    text = (
        "A framed cell marked “tie” is within noise of the best: the interval of its difference "
        "includes 0. Among these the figures do not decide, and the cheapest will do."
    )
    return Section("grid", "Rank and α", text, parts)


def _losses(histories: Mapping[str, History]) -> Section:
    parts = []
    if any(histories.values()):
        caption = "Training and validation loss, one panel a run, on shared axes."
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
    )
    missing = f" {listing(unknown)}: no probabilities, so no calibration." if unknown else ""
    text = (
        "A point on the diagonal is right as often as it says. Below it a method is too sure of "
        "itself. The expected calibration error is the mean gap between confidence (the largest "
        "probability of a row) and accuracy over 15 bins of equal width, weighted by their rows; "
        "of several seeds their mean, with the smallest and the largest. Nothing was recalibrated."
        f"{missing}"
    )
    caption = "Reliability of each method, the rows of all seeds together."
    parts = [
        Part(caption, partial(calibration_plot, curves)),
        Part("Calibration errors as a table, the best calibrated first.", table=table, folded=True),
    ]
    return Section("calibration", "Calibration", text, parts if curves else [])


def _changes(changes: Mapping[str, tuple[MatrixChange, ...]]) -> Section:
    known = {name: moved for name, moved in changes.items() if moved}
    parts = []
    for index, (name, moved) in enumerate([*known.items()][:MOST_RUNS]):
        shares = {c.name: 100 * c.share for c in moved if c.weight_norm}
        directions = {c.name: c.effective_rank for c in moved if c.effective_rank is not None}
        for values, what, unit, shown in (
            (shares, "‖ΔW‖ as a share of ‖W‖", "‖ΔW‖ / ‖W‖, %", "{:.2g}".format),
            (directions, "effective rank of ΔW", "effective rank", "{:.1f}".format),
        ):
            if values:
                figure = partial(matrix_plot, values, name, unit, shown)
                parts.append(Part(f"{name}: {what}.", figure, folded=index > 0))
    dropped = f" Drawn are the first {MOST_RUNS} of {len(known)}." if len(known) > MOST_RUNS else ""
    text = (
        "How far each matrix moved from the base (Frobenius norms), and in how many directions: "
        "the effective rank is the exponential of the entropy of ΔW's singular values (Roy and "
        "Vetterli, 2007), between 1 and the rank. One run stands for each method; heads, which "
        f"start new, are left out, and so are dense ΔW above {LARGEST_SIDE:,} on their smaller "
        f"side.{dropped}"
    )
    return Section("changes", "What moved: ΔW by matrix and layer", text, parts)


def _ranks(ranks: Mapping[str, Mapping[str, int]]) -> Section:
    parts = [
        Part(f"Rank of each matrix in {name}.", partial(rank_plot, moved, name))
        for name, moved in ranks.items()
        if moved
    ]
    text = "Where a method moved ranks between matrices while it trained."
    return Section("ranks", "Ranks that were learned", text, parts)
