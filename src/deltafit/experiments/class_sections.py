"""The page's sections on classes: differences in F1, and confusions that changed."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from deltafit.experiments.answers import Evidence
from deltafit.experiments.class_plot import class_difference_plot, most_telling
from deltafit.experiments.class_statistics import (
    RARE,
    ClassDifference,
    class_differences,
)
from deltafit.experiments.confusion_statistics import ConfusionChange, confusion_changes
from deltafit.experiments.differences import full_reference
from deltafit.experiments.page_parts import Part, Section, Table, pictured, runs_in_order
from deltafit.experiments.tables import Row, format_metric, format_points, with_outcome

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


def class_sections(rows: Sequence[Row], evidence: Evidence) -> list[Section]:
    """Return how runs differ from the reference in F1 by class, and in what they confuse.

    Args:
        rows: of the comparison, all of them judged.
        evidence: what methods said.
    """
    reference = reference_of(rows)
    said = evidence.answers
    runs = [row for row in runs_in_order(rows) if row is not reference and row["name"] in said]
    if reference is None or reference["name"] not in said or not runs:
        return []
    known, not_drawn = pictured([str(row["name"]) for row in runs])
    parts = [
        _class_part(name, reference["name"], evidence, folded=index > 0)
        for index, name in enumerate(known)
    ]
    rare = f"under {100 * RARE:.0f} % of the training rows that an even share would be"
    text = (
        f"The reference is {reference['name']}. Differences are a method's F1 minus the "
        "reference's, on the same rows. Within noise: the interval includes 0. Better or worse "
        "beyond noise: so after correction for the number of classes. What lies between is "
        f"undecided. Rare classes have {rare}.{not_drawn}"
    )
    legend = (
        "Grey markers are within noise where they are hollow, and undecided where they are half "
        "filled; diamonds are rare classes."
    )
    return [
        Section("classes", "Classes: difference in F1", text, parts, legend),
        _confusions(known[0], reference["name"], evidence),
    ]


def _class_part(name: str, reference: str, evidence: Evidence, *, folded: bool) -> Part:
    found = class_differences(
        evidence.labels,
        evidence.label_names,
        evidence.train_counts,
        *(evidence.answers[each].predicted for each in (name, reference)),
    )
    classes = found.classes
    apart = [each for each in classes if each.comparison.beyond_noise]
    better = sum(each.comparison.difference > 0 for each in apart)
    rare = sum(each.rare for each in classes)
    told = sum(each.rare for each in apart)
    caption = (
        f"{name} against {reference}: of {len(classes)} classes ({rare} of them rare) better "
        f"beyond noise in {better}, worse in {len(apart) - better}."
    )
    if rare:
        caption += f" Of those told apart {told} {'is' if told == 1 else 'are'} rare."
    if found.rare and found.others:
        rare_ones, others = (
            with_outcome(f"{format_points(vars(each))} points", vars(each))
            for each in (found.rare, found.others)
        )
        caption += f" Mean F1 of the rare ones: {rare_ones}; of the others: {others}."
    shown = most_telling(classes)
    if len(shown) < len(classes):
        caption += f" The {len(shown)} most telling are shown."
    table = Table(
        ["class", "rows", "in training", "F1 %", "reference's F1 %", "difference, points"],
        [_class_line(each) for each in shown],
        [{"method": name, "reference": reference, **asdict(each)} for each in classes],
    )
    return Part(caption, partial(class_difference_plot, shown), table, folded=folded)


def _class_line(each: ClassDifference) -> list[str]:
    comparison = vars(each.comparison)
    return [
        f"{each.name} (rare)" if each.rare else each.name,
        *(f"{count}" for count in (each.support, each.train_count)),
        *(format_metric(f1, "macro_f1") for f1 in (each.f1, each.reference_f1)),
        with_outcome(format_points(comparison), comparison),
    ]


def _confusions(name: str, reference: str, evidence: Evidence) -> Section:
    predicted, theirs = (evidence.answers[each].predicted for each in (name, reference))
    found = confusion_changes(evidence.labels, evidence.label_names, predicted, theirs)
    moved = [change for change in found.tested if change.rows != change.reference_rows]
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
    tested, all_of_them = len(found.tested), found.occurring
    which = (
        f"All {tested} confusions that either method makes were tested"
        if tested == all_of_them
        else f"Of the {all_of_them} confusions that either method makes, the {tested} most "
        "frequent were tested (by the rows of both together, whatever their change)"
    )
    text = (
        "How many judged rows of a class are taken for another, the mean over seeds. "
        f"{which}. A change is beyond noise after correction for these {tested}, or it is said to "
        "be within noise, or undecided."
    )
    records = [
        {"method": name, "reference": reference, **asdict(change)} for change in found.tested
    ]
    parts = [Part(caption, table=Table(headers, rows, records))] if rows else []
    return Section("confusions", "Confusions that changed", text, parts)


def _moved(change: ConfusionChange, count: int) -> str:
    found = change.comparison
    return with_outcome(f"{found.difference * count:+.3g}".replace("-", "−"), vars(found))
