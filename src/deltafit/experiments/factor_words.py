"""A setting's values in words and as a table: which are as good as the best, and which are not."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from deltafit.experiments.factors import Factor, Level
from deltafit.experiments.heading import setting_name
from deltafit.experiments.page_parts import Table
from deltafit.experiments.tables import (
    NOTHING,
    format_count,
    format_difference,
    format_metric,
    format_points,
    outcome_of,
)
from deltafit.experiments.training_gap import format_gap
from deltafit.experiments.words import listing, named


def of_method(factor: Factor) -> str:
    """Return "Of lora, on average over α 4, 8, 16 and 32, ", as a sentence begins."""
    over = [
        f"{setting_name(name)} {listing([*map(_written, values)])}"
        for name, values in factor.over.items()
    ]
    method = factor.best.members[0].arm.method.command_line_name
    return f"Of {method}, {f'on average over {listing(over)}, ' if over else ''}"


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def without_counterpart(factor: Factor) -> str:
    """Return a sentence about rows that have no part in the comparison, if there are any."""
    if not factor.left_out:
        return ""
    are = "row has" if factor.left_out == 1 else "rows have"
    return f" {factor.left_out} {are} no counterpart, and no part in this."


def others(
    factor: Factor, name: Callable[[Level], str], spoken: Sequence[Level], *, sizes: bool = False
) -> str:
    """Say of the levels not spoken of yet how they stand to the best, one sentence an outcome.

    Args:
        factor: the setting.
        name: what a level is called.
        spoken: of which a sentence before has told.
        sizes: whether to tell how many parameters each trains.
    """
    said = ""
    for outcome, words in (
        ("within noise", "Within noise of it"),
        ("undecided", "Undecided (worse looked at alone, and not after correction)"),
        ("worse", "Worse beyond noise"),
    ):
        levels = [
            level
            for level in factor.levels
            if level.to_best and level not in spoken and outcome_of(vars(level.to_best)) == outcome
        ]
        if levels:
            texts = [
                f"{name(level)} ({points(level)}{f'; {size(level)} trained' if sizes else ''})"
                for level in levels
            ]
            said += f" {words}: {named(texts)}."
    return said


def table(factor: Factor, title: str, name: Callable[[Level], str]) -> Table:
    """Return a line for each level; with the gap between training and judged rows, where known."""
    gaps = [_gap(level) for level in factor.levels]
    headers = [title, "rows", "trained parameters", "accuracy %", "difference to the best"]
    rows = []
    for level, gap in zip(factor.levels, gaps, strict=True):
        to_best = None if level.to_best is None else vars(level.to_best)
        cells = [name(level), str(len(level.members)), size(level)]
        cells += [format_metric(level.accuracy, "accuracy")]
        cells += [format_difference({"difference": to_best})]
        rows.append(cells + ([gap or NOTHING] if any(gaps) else []))
    headers += ["training − judged rows"] if any(gaps) else []
    return Table(headers, rows, [_record(factor, level, name(level)) for level in factor.levels])


def _record(factor: Factor, level: Level, name: str) -> dict[str, Any]:
    return {
        "setting": factor.setting,
        "value": name,
        "rows": [member.row["name"] for member in level.members],
        "trainable": level.mean("trainable"),
        "accuracy": level.accuracy,
        "training": level.mean("training"),
        "difference": None if level.to_best is None else asdict(level.to_best),
    }


def _gap(level: Level) -> str | None:
    training = level.mean("training")
    return None if training is None else format_gap(training - level.accuracy)


def size(level: Level) -> str:
    """Return how many parameters its rows train on average."""
    size = level.mean("trainable")
    return NOTHING if size is None else format_count(round(size))


def accuracy(level: Level) -> str:
    """Return "96.5 %"."""
    return f"{format_metric(level.accuracy, 'accuracy')} %"


def points(level: Level) -> str:
    """Return its difference to the best, with its interval."""
    assert level.to_best is not None
    return f"{format_points(vars(level.to_best))} points"
