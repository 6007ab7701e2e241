"""Figures of others beside ours, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from deltafit.experiments.recipe import Figure, Published
from deltafit.experiments.tables import NOTHING, format_count

_TITLES: Mapping[Figure, str] = {
    "accuracy": "accuracy %",
    "macro_f1": "macro-F1 %",
    "trainable": "trainable",
    "minutes": "minutes",
}


def published_markdown(published: Published, rows: Sequence[Mapping[str, Any]], model: str) -> str:
    """Return a table of every row that has a published figure, with ours next to it.

    Args:
        published: the figures.
        rows: ours, as `deltafit.experiments.tables` describes them.
        model: that ours are of.
    """
    known = [figure for figure in _TITLES if any(figure in f for f in published.figures.values())]
    heads = [f"{_TITLES[figure]}, {whose}" for figure in known for whose in ("published", "ours")]
    lines = [["row", *heads], ["---", *(["---:"] * len(heads))]]
    for row in rows:
        figures = published.figures.get(row["name"])
        if figures:
            cells = [
                cell
                for figure in known
                for cell in (
                    _shown(figure, figures.get(figure)),
                    _shown(figure, _ours(figure, row)),
                )
            ]
            lines.append([row["name"].replace("|", "\\|"), *cells])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    source = published.source.strip()
    return f"Published: {source}\n\nOurs: {model}, on the rows of this report.\n\n{table}"


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
