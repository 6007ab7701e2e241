"""The parts of a report's page below its table: each says in words what its picture shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from deltafit.adapters.movement import LARGEST_SIDE, MatrixChange
from deltafit.experiments.answers import Evidence
from deltafit.experiments.calibration import calibration_plot, format_error, reliability
from deltafit.experiments.class_plot import class_difference_plot, most_telling
from deltafit.experiments.class_statistics import (
    RARE,
    ConfusionChange,
    class_differences,
    confusion_changes,
)
from deltafit.experiments.cost_plots import MEMORY, SHARE, TIME, Cost, cost_plot
from deltafit.experiments.differences import FULL
from deltafit.experiments.grid_plot import grid_plot, grids, mark_of
from deltafit.experiments.rank_plot import matrix_plot, rank_plot
from deltafit.experiments.run_plots import History, loss_plot
from deltafit.experiments.tables import Row
from deltafit.experiments.verdict import advised, listing

MOST_RUNS = 6  # that get pictures of their own
CONFUSIONS_SHOWN = 12


@dataclass(frozen=True)
class Table:
    """Text in rows; the first column names what a row is of."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A picture or a table with its words.

    Attributes:
        caption: what it shows, in a sentence.
        figure: makes the picture.
        table: or the figures themselves.
        folded: whether it opens on demand.
    """

    caption: str
    figure: Callable[[], Figure] | None = None
    table: Table | None = None
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: its id.
        title: its heading.
        text: how to read it.
        parts: what it shows; at least one.
    """

    name: str
    title: str
    text: str
    parts: Sequence[Part]


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
        sections += [*_classes(judged, evidence), _calibration(judged, evidence)]
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
        "A framed cell marked “tie” is within noise of the best after correction for all rows; "
        "among these the figures do not decide, and the cheapest will do."
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


def reference_of(rows: Sequence[Row]) -> Row | None:
    """Return what classes are compared with: full fine-tuning, or else the best cheap baseline.

    None where there is neither, or nothing was trained besides.
    """
    runs = [row for row in rows if row["kind"] == "run"]
    full = next((row for row in runs if row["result_name"] == FULL), None)
    if full is not None and len(runs) > 1:
        return full
    cheap = [row for row in rows if row["kind"] == "baseline"]
    return max(cheap, key=lambda row: float(row["after"])) if cheap and runs else None


def _compared(rows: Sequence[Row], reference: Row) -> list[Row]:
    """Return the runs that are shown beside the reference: the advised first, then the best."""
    chosen = advised(rows)
    runs = [row for row in rows if row["kind"] == "run" and row is not reference]
    return sorted(runs, key=lambda row: (row is not chosen, -row["after"]))[:MOST_RUNS]


def _classes(rows: Sequence[Row], evidence: Evidence) -> list[Section]:
    reference = reference_of(rows)
    runs = [] if reference is None else _compared(rows, reference)
    said = evidence.answers
    known = [row for row in runs if row["name"] in said]
    if reference is None or reference["name"] not in said or not known:
        return []
    parts = [
        _class_part(row["name"], reference["name"], evidence, folded=index > 0)
        for index, row in enumerate(known)
    ]
    rare = f"under {100 * RARE:.0f} % of the training rows that an even share would be"
    text = (
        f"The reference is {reference['name']}. Differences are a method's F1 minus the "
        "reference's, on the same rows; grey ones are within noise after correction for the number "
        f"of classes. Diamonds are rare classes: {rare}."
    )
    title = "Classes: difference in F1"
    return [
        Section("classes", title, text, parts),
        _confusions(known[0]["name"], reference["name"], evidence),
    ]


def _class_part(name: str, reference: str, evidence: Evidence, *, folded: bool) -> Part:
    found = class_differences(
        evidence.labels,
        evidence.label_names,
        evidence.train_counts,
        *(evidence.answers[each].predicted for each in (name, reference)),
    )
    apart = [each for each in found if not each.comparison.within_noise]
    better = sum(each.comparison.difference > 0 for each in apart)
    rare = [each for each in found if each.rare]
    caption = (
        f"{name} against {reference}: better beyond noise in {better} of {len(found)} classes "
        f"({len(rare)} rare), worse in {len(apart) - better}."
    )
    shown = most_telling(found)
    if len(shown) < len(found):
        caption += f" The {len(shown)} most telling are drawn."
    return Part(caption, partial(class_difference_plot, shown), folded=folded)


def _confusions(name: str, reference: str, evidence: Evidence) -> Section:
    predicted, theirs = (evidence.answers[each].predicted for each in (name, reference))
    changes = confusion_changes(evidence.labels, evidence.label_names, predicted, theirs)
    moved = [change for change in changes if change.rows != change.reference_rows]
    shown = moved[:CONFUSIONS_SHOWN]
    headers = ["true class → taken for", f"rows, {name}", f"rows, {reference}", "change"]
    rows = [
        [
            f"{change.truth} → {change.predicted}",
            *(f"{count:.3g}" for count in (change.rows, change.reference_rows)),
            _moved(change, len(evidence.labels)),
        ]
        for change in shown
    ]
    more = f" The {len(shown)} largest of {len(moved)} changes." if len(shown) < len(moved) else ""
    caption = f"{name} against {reference}.{more}"
    text = (
        "How many judged rows of a class are taken for another, the mean over seeds. “Within "
        "noise” is after correction for the number of confusions that there are."
    )
    parts = [Part(caption, table=Table(headers, rows))] if rows else []
    return Section("confusions", "Confusions that changed", text, parts)


def _moved(change: ConfusionChange, count: int) -> str:
    found = change.comparison
    rows = f"{found.difference * count:+.3g}".replace("-", "−")
    return f"within noise ({rows})" if found.within_noise else rows


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
