"""The page's sections on classes: differences in F1, and confusions that changed."""

from collections.abc import Sequence
from functools import partial

from deltafit.experiments.answers import Evidence
from deltafit.experiments.class_plot import class_difference_plot, most_telling
from deltafit.experiments.class_statistics import (
    RARE,
    ConfusionChange,
    class_differences,
    confusion_changes,
)
from deltafit.experiments.differences import full_reference
from deltafit.experiments.page_parts import MOST_RUNS, Part, Section, Table
from deltafit.experiments.tables import Row, outcome_of
from deltafit.experiments.verdict import advised

CONFUSIONS_SHOWN = 12


def reference_of(rows: Sequence[Row]) -> Row | None:
    """Return what classes are compared with: full fine-tuning, or else the best cheap baseline.

    None where there is neither, or nothing was trained besides.
    """
    runs = [row for row in rows if row["kind"] == "run"]
    full = full_reference(runs)
    if full is not None and len(runs) > 1:
        return full
    cheap = [row for row in rows if row["kind"] == "baseline"]
    return max(cheap, key=lambda row: float(row["after"])) if cheap and runs else None


def _compared(rows: Sequence[Row], reference: Row) -> list[Row]:
    """Return the runs that are shown beside the reference: the advised first, then the best."""
    chosen = advised(rows)
    runs = [row for row in rows if row["kind"] == "run" and row is not reference]
    return sorted(runs, key=lambda row: (row is not chosen, -row["after"]))[:MOST_RUNS]


def class_sections(rows: Sequence[Row], evidence: Evidence) -> list[Section]:
    """Return how runs differ from the reference in F1 by class, and in what they confuse.

    Args:
        rows: of the comparison, all of them judged.
        evidence: what methods said.
    """
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
        "reference's, on the same rows; grey ones are not beyond noise after correction for the "
        f"number of classes. Diamonds are rare classes: {rare}."
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
    apart = [each for each in found if each.comparison.beyond_noise]
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
        "How many judged rows of a class are taken for another, the mean over seeds. A change is "
        "beyond noise after correction for the number of confusions that there are, or it is said "
        "to be within noise, or undecided."
    )
    parts = [Part(caption, table=Table(headers, rows))] if rows else []
    return Section("confusions", "Confusions that changed", text, parts)


def _moved(change: ConfusionChange, count: int) -> str:
    found = change.comparison
    rows = f"{found.difference * count:+.3g}".replace("-", "−")
    outcome = outcome_of(vars(found))
    return rows if found.beyond_noise else f"{outcome} ({rows})"
