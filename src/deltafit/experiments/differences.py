"""Which rows of a comparison differ beyond noise: paired on the same judged rows, and corrected."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from deltafit.experiments.resampling import BoolArray
from deltafit.experiments.statistics import PairedComparison, corrected, paired_over_seeds
from deltafit.experiments.tables import Row, best_on_validation, format_points, outcome_of
from deltafit.experiments.verdict import advised

FULL = "all"  # the result name of full fine-tuning
_AGAINST = ("against_baseline", "against_full", "against_advised")


def with_differences(rows: Sequence[Row], correct: Sequence[BoolArray]) -> list[dict[str, Any]]:
    """Return rows with how they differ from what people ask about.

    That is, for every row, from the best one (``difference``); and for every run from the best
    cheap baseline (``against_baseline``), from full fine-tuning where that is among them
    (``against_full``; of several such rows from the one with the best validation figure), and from
    what the verdict advises (``against_advised``). Each of these sets of comparisons is corrected
    for its number, for what is said to be beyond noise. A run that does not beat the baseline
    beyond noise gets a note that says so.

    Args:
        rows: without these fields; none failed.
        correct: which judged rows each got right, ``[seeds, n]``.
    """
    every = range(len(rows))
    runs = [index for index in every if rows[index]["kind"] == "run"]
    cheap = [index for index in every if rows[index]["kind"] == "baseline"]
    found: list[dict[str, Any]] = [
        {**row, **dict.fromkeys(("difference", *_AGAINST))} for row in rows
    ]

    @cache  # one row may be the best, the best baseline and what is advised
    def compare(index: int, other: int) -> PairedComparison:
        return paired_over_seeds(correct[index], correct[other])

    if rows:
        best = max(every, key=lambda index: float(rows[index]["after"]))
        for index, difference in _differences(every, best, compare).items():
            found[index]["difference"] = difference
    if cheap:
        best = max(cheap, key=lambda index: float(rows[index]["after"]))
        for index, difference in _differences(runs, best, compare).items():
            found[index] |= _against_baseline(rows[index], rows[best]["name"], difference)
    reference = full_reference(rows)
    full = next((index for index in runs if rows[index] is reference), None)
    chosen = advised(found)
    to_ship = next((index for index in every if found[index] is chosen), None)
    for key, other in (("against_full", full), ("against_advised", to_ship)):
        if other is not None:
            for index, difference in _differences(runs, other, compare).items():
                found[index][key] = {"name": rows[other]["name"], **difference}
    return found


def full_reference(rows: Sequence[Row]) -> Row | None:
    """Return the row that stands for full fine-tuning, if any does: see `best_on_validation`."""
    full = [row for row in rows if row["result_name"] == FULL and not row.get("failure")]
    return best_on_validation(full) if full else None


def _differences(
    indices: Sequence[int], other: int, compare: Callable[[int, int], PairedComparison]
) -> dict[int, dict[str, Any]]:
    """Compare each row but ``other`` with it, corrected for their number; by index."""
    compared = [index for index in indices if index != other]
    differences = corrected([compare(index, other) for index in compared])
    return {i: asdict(each) for i, each in zip(compared, differences, strict=True)}


def _against_baseline(run: Row, name: str, difference: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run's row that its comparison with the baseline ``name`` decides."""
    notes, points = list(run["notes"]), format_points(difference)
    notes += {
        "within noise": [f"does not beat {name} beyond noise ({points})"],
        "undecided": [f"whether it is better or worse than {name} is undecided ({points})"],
        "worse": [f"is worse than {name} beyond noise ({points})"],
        "better": [],
    }[outcome_of(difference)]
    return {"against_baseline": {"name": name, **difference}, "notes": notes}
