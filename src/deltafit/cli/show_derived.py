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
from deltafit.prediction.merging import MergeReport
from deltafit.prediction.truncating import TruncateReport

_PARAMETERS_SHOWN = 5
_Others = Sequence[tuple[str, Agreement]]  # of each, by its folder


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
    say(
        console,
        "The share of the energy ‖ΔW‖² that a rank keeps is 1 less the error's square. To cut, add "
        "--output and --rank, or --energy with the share to keep.",
    )


def show_merge(console: Console, report: MergeReport) -> None:
    """Print where the checkpoint is, its certificate, and what to know before it is used."""
    say(console, f"Wrote {report.folder}.")
    _show_agreement(console, report.certificate, "the adapter on its base")
    lost = report.certificate.energy_lost
    if lost:
        say(console, f"The sum's rounding loses {_share(lost)} of the energy ‖ΔW‖².")
    if report.quantised is not None:
        say(
            console,
            f"The adapter was trained on base weights in {report.quantised}, and merged into those "
            "in float32. The checkpoint therefore does not predict what the adapter does; evaluate "
            "it before you rely on it.",
        )
    if report.head_apart:
        say(
            console,
            "transformers has no class for this head, so the checkpoint is the encoder alone; "
            "head.json says how to read logits off it with head.safetensors.",
        )


def show_truncate(console: Console, report: TruncateReport) -> None:
    """Print where the adapter is, and its certificate."""
    say(console, f"Wrote {report.folder}.")
    _show_certificate(console, report.certificate, "the adapter it was cut from")


def show_combine(console: Console, folders: Sequence[Path], report: CombineReport) -> None:
    """Print where the adapter is, its certificate, and how far it is from each that went in."""
    say(console, f"Wrote {report.folder}.")
    each = list(zip(map(str, folders), report.from_each, strict=True))
    _show_certificate(console, report.certificate, "the uncut combination", each)


def show_extract(console: Console, tuned: str, report: ExtractReport) -> None:
    """Print where the adapter is, its certificate, and what it does not hold."""
    say(console, f"Wrote {report.folder}.")
    _show_certificate(console, report.certificate, tuned)
    if report.whole:
        say(console, f"Stored whole beside the head: {_listed(report.whole)}.")
    if report.left_out:
        share = _share(sum(report.left_out.values()))
        say(
            console,
            f"Left as in the base, since they are no matrices: {_listed(list(report.left_out))} "
            f"({share} of the energy of all changes).",
        )


def _show_certificate(
    console: Console, found: Certificate, reference: str, others: _Others = ()
) -> None:
    ranks = [loss.rank for loss in found.matrices]
    span = str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
    count = "1 matrix" if len(ranks) == 1 else f"{len(ranks)} matrices"
    lost = found.energy_lost
    said = (
        f"{_share(lost)} of the energy ‖ΔW‖² is lost (relative error {math.sqrt(lost):.2g})"
        if lost
        else "nothing is lost"
    )
    say(console, f"Rank {span} in {count}; {said}.")
    worst = max(found.matrices, key=lambda loss: loss.error)
    if worst.error > 0:
        say(
            console,
            f"Of single matrices {worst.name} loses most (relative error {worst.error:.2g} at "
            f"rank {worst.rank} of {worst.full_rank}).",
        )
    _show_agreement(console, found, reference, others)


def _show_agreement(
    console: Console, found: Certificate, reference: str, others: _Others = ()
) -> None:
    """Print how far logits and predictions are from the reference's, and from others'."""
    table = table_of(
        "How far it is from what it was made of",
        *("against", "texts", "largest logit change", "flipped"),
        left=("against", "texts"),
    )
    rows = [(reference, found.canaries, "canaries"), (reference, found.probe, "of --data")]
    rows += [(name, seen, "canaries") for name, seen in others]
    for name, seen, what in rows:
        if seen is not None:
            change = f"{seen.largest_change:.2g}"
            add_row(table, name, f"{seen.texts} {what}", change, str(seen.flipped))
    console.print(table)
    say(console, "A change is relative where logits are above 1; flipped are predictions.")


def _share(part: float) -> str:
    """Return 0.0123 as "1.23 %", and what would be 0.00 % with the digits that it has."""
    return percent(part) if part >= 5e-5 else f"{100 * part:.1g} %"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _PARAMETERS_SHOWN
    return ", ".join(names[:_PARAMETERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def as_json(
    found: RankErrors | MergeReport | TruncateReport | CombineReport | ExtractReport,
) -> dict[str, Any]:
    """Return a report as JSON values."""
    content = asdict(found)
    if not isinstance(found, RankErrors):
        content |= {"folder": str(found.folder), "certificate": found.certificate.to_dict()}
    return content
