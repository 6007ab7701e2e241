"""How adapters made from others, and what cutting them would lose, look in a terminal."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from deltafit.adapters.truncation import RankErrors
from deltafit.cli.show import add_row, percent, say, table_of
from deltafit.prediction.certificates import Agreement, Certificate
from deltafit.prediction.combining import CombineReport
from deltafit.prediction.extracting import ExtractReport
from deltafit.prediction.truncating import TruncateReport

_PARAMETERS_SHOWN = 5


def show_errors(console: Console, errors: RankErrors) -> None:
    """Print the relative error of ranks 1, 2, 4, ... for all matrices together and for each."""
    full = len(errors.overall) - 1
    ranks = [2**power for power in range(full.bit_length()) if 2**power < full] + [full]
    table = table_of(
        "Relative error ‖ΔW - ΔWᵣ‖ / ‖ΔW‖ of each rank r",
        *("matrix", *map(str, ranks)),
        left=("matrix",),
    )
    for name, own in (("all together", errors.overall), *errors.matrices.items()):
        add_row(table, name, *(f"{own[rank]:.3f}" if rank < len(own) else "0" for rank in ranks))
    console.print(table)
    say(console, "The share of energy that a rank keeps is 1 less the error's square.")


def show_truncate(console: Console, report: TruncateReport) -> None:
    """Print where the adapter is, and its certificate."""
    say(console, f"Wrote {report.folder}.")
    _show_certificate(console, report.certificate, "the adapter it was cut from")


def show_combine(console: Console, folders: Sequence[Path], report: CombineReport) -> None:
    """Print where the adapter is, its certificate, and how far it is from each that went in."""
    say(console, f"Wrote {report.folder}.")
    _show_certificate(console, report.certificate, "the combination before it was cut to its rank")
    for folder, seen in zip(folders, report.from_each, strict=True):
        say(console, f"Against {folder}: {_sentence(seen, 'canary sentences')}")


def show_extract(console: Console, tuned: str, report: ExtractReport) -> None:
    """Print where the adapter is, its certificate, and what it does not hold."""
    say(console, f"Wrote {report.folder}.")
    _show_certificate(console, report.certificate, tuned)
    if report.whole:
        say(console, f"Stored whole beside the head: {_listed(report.whole)}.")
    if report.left_out:
        share = percent(sum(report.left_out.values()))
        say(
            console,
            f"Left as in the base, since they are no matrices: {_listed(list(report.left_out))} "
            f"({share} of the energy of all changes).",
        )


def _show_certificate(console: Console, found: Certificate, reference: str) -> None:
    ranks = [loss.rank for loss in found.matrices]
    span = str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
    error = math.sqrt(found.energy_lost)
    say(
        console,
        f"Rank {span} in {len(ranks)} matrices; {percent(found.energy_lost)} of the energy is "
        f"lost (relative error {error:.2e}).",
    )
    worst = max(found.matrices, key=lambda loss: loss.error)
    if worst.error > 0:
        say(
            console,
            f"Of single matrices {worst.name} loses most (relative error {worst.error:.2e} at "
            f"rank {worst.rank} of {worst.full_rank}).",
        )
    say(console, f"Against {reference}: {_sentence(found.canaries, 'canary sentences')}")
    if found.probe is not None:
        say(console, f"Against {reference}: {_sentence(found.probe, 'texts given')}")


def _sentence(seen: Agreement, what: str) -> str:
    return (
        f"on {seen.texts} {what} the largest change of a logit is {seen.largest_change:.1e}, and "
        f"{seen.flipped} predictions flip."
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _PARAMETERS_SHOWN
    return ", ".join(names[:_PARAMETERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def as_json(
    found: RankErrors | TruncateReport | CombineReport | ExtractReport,
) -> dict[str, Any]:
    """Return a report as JSON values."""
    content = asdict(found)
    if not isinstance(found, RankErrors):
        content |= {"folder": str(found.folder), "certificate": found.certificate.to_dict()}
    return content
