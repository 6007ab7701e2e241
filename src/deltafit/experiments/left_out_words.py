"""An adapter without each kind of its matrices, in words and as a table."""

from dataclasses import asdict

from deltafit.experiments.left_out import KindLeftOut, LeftOut
from deltafit.experiments.page_parts import Part, Table
from deltafit.experiments.tables import format_metric, format_points, outcome_of, with_outcome
from deltafit.experiments.words import listing


def left_out_part(name: str, found: LeftOut, before: str) -> Part:
    """Say which kinds of matrices the adapter of a row cannot do without.

    Args:
        name: of the row.
        found: what it is without each of them.
        before: sentences before the answer.
    """
    by_outcome: dict[str, list[KindLeftOut]] = {}
    for kind in found.kinds:
        by_outcome.setdefault(outcome_of(vars(kind.to_whole)), []).append(kind)
    said = []
    for outcome, words in (
        ("worse", "worse beyond noise without"),
        ("better", "better beyond noise without"),
        ("undecided", "undecided without"),
        ("within noise", "within noise of the whole without"),
    ):
        if kinds := by_outcome.get(outcome):
            said.append(f"{words} {listing([each.title for each in kinds])}")
    rows = f"all {found.count:,} judged rows"
    if found.count < found.total:
        rows = f"{found.count:,} of the {found.total:,} judged rows"
    return Part(
        f"{before} Of {name} one kind of matrix at a time was left out, in all blocks, and nothing "
        f"trained again. On {rows} ({_percent(found.accuracy)} % with all) it is {'; '.join(said)} "
        f"(corrected for {len(found.kinds)} kinds). What is not missed alone may be missed with "
        "another.",
        table=Table(
            ["without", "of ‖ΔW‖²", "accuracy %", "difference to the whole"],
            [_line(kind) for kind in found.kinds],
            [{"row": name, **asdict(kind)} for kind in found.kinds],
        ),
    )


def _line(kind: KindLeftOut) -> list[str]:
    difference = with_outcome(_points(kind), vars(kind.to_whole))
    return [kind.title, f"{100 * kind.energy:.0f} %", _percent(kind.accuracy), difference]


def _points(kind: KindLeftOut) -> str:
    return format_points(vars(kind.to_whole))


def _percent(accuracy: float) -> str:
    return format_metric(accuracy, "accuracy")
