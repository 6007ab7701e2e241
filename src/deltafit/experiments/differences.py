"""Which rows of a comparison differ beyond noise: paired on the same judged rows, and corrected."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from deltafit.experiments.resampling import BoolArray
from deltafit.experiments.tables import Row, best_on_validation, outcome_of
from deltafit.experiments.together import Together
from deltafit.experiments.verdict import advised

FULL = "all"  # the result name of full fine-tuning
_AGAINST = ("against_baseline", "against_full", "against_advised")


def with_differences(rows: Sequence[Row], correct: Sequence[BoolArray]) -> list[dict[str, Any]]:
    """Return rows with how they differ from what people ask about.

    That is, for every row, from the best one (``difference``); and for every run from the best
    cheap baseline (``against_baseline``), from full fine-tuning where that is among them
    (``against_full``; of several such rows from the one with the best validation figure), and from
    what the verdict advises (``against_advised``). Most of these are chosen by the judged rows, so
    all are corrected for all pairs of rows. A run that does not beat the baseline beyond noise gets
    a note that says so.

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
    if not rows:
        return found
    together = Together(correct)

    def to(other: int, indices: Sequence[int]) -> dict[int, dict[str, Any]]:
        return {i: asdict(together.compare(i, other)) for i in indices if i != other}

    def best_of(indices: Sequence[int]) -> int:
        return max(indices, key=lambda index: float(rows[index]["after"]))

    for index, difference in to(best_of(every), every).items():
        found[index]["difference"] = difference
    if cheap:
        best = best_of(cheap)
        for index, difference in to(best, runs).items():
            found[index] |= _against_baseline(rows[index], rows[best]["name"], difference)
    reference = full_reference(rows)
    full = next((index for index in runs if rows[index] is reference), None)
    chosen = advised(found)
    to_ship = next((index for index in every if found[index] is chosen), None)
    for key, other in (("against_full", full), ("against_advised", to_ship)):
        if other is not None:
            for index, difference in to(other, runs).items():
                found[index][key] = {"name": rows[other]["name"], **difference}
    return found


def full_reference(rows: Sequence[Row]) -> Row | None:
    """Return the row that stands for full fine-tuning, if any does: see `best_on_validation`."""
    full = [row for row in rows if row["result_name"] == FULL and not row.get("failure")]
    return best_on_validation(full) if full else None


def _against_baseline(run: Row, name: str, difference: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run's row that its comparison with the baseline ``name`` decides."""
    notes = {
        "within noise": [f"no better than {name} beyond noise"],
        "undecided": [f"whether better or worse than {name} is undecided"],
        "worse": [f"worse than {name} beyond noise"],
        "better": [],
    }[outcome_of(difference)]
    return {"against_baseline": {"name": name, **difference}, "notes": [*run["notes"], *notes]}
