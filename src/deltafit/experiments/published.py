"""Figures of others beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from deltafit.experiments.page_parts import Part, Section, Table
from deltafit.experiments.recipe import Figure, Published
from deltafit.experiments.tables import NOTHING, format_count

_TITLES: Mapping[Figure, str] = {
    "accuracy": "accuracy %",
    "macro_f1": "macro-F1 %",
    "trainable": "trainable",
    "minutes": "minutes",
}


def published_section(
    published: Published, rows: Sequence[Mapping[str, Any]], model: str
) -> Section:
    """Return a table of every row that has a published figure, with ours next to it.

    Args:
        published: the figures.
        rows: ours, as `deltafit.experiments.tables` describes them.
        model: that ours are of.
    """
    known = [figure for figure in _TITLES if any(figure in f for f in published.figures.values())]
    heads = [f"{_TITLES[figure]}, {whose}" for figure in known for whose in ("published", "ours")]
    lines, records = [], []
    for row in rows:
        figures = published.figures.get(row["name"])
        if figures:
            pairs = [(figure, (figures.get(figure), _ours(figure, row))) for figure in known]
            lines.append([row["name"], *(_shown(what, of) for what, pair in pairs for of in pair)])
            records += [
                {"row": row["name"], "figure": what, "published": theirs, "ours": ours}
                for what, (theirs, ours) in pairs
            ]
    text = f"Published: {published.source.strip()} Ours: {model}, on the rows of this report."
    part = Part("Published figures beside ours.", table=Table(["row", *heads], lines, records))
    return Section("published", "Published figures", text, [part])


def _ours(figure: Figure, row: Mapping[str, Any]) -> float | None:
    if figure == "minutes":
        return None if row["seconds"] is None else row["seconds"] / 60
    value: float | None = row["after" if figure == "accuracy" else figure]
    return value


def _shown(figure: Figure, value: float | None) -> str:
    if value is None:
        return NOTHING
    if figure == "trainable":
        return format_count(int(value))
    return f"{value:.2f}" if figure == "minutes" else f"{100 * value:.2f}"
