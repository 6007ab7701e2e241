"""``report.html``: a comparison as one page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from deltafit.experiments.heading import task, title, what_it_is, where_it_is
from deltafit.experiments.inline_svg import inline_svg
from deltafit.experiments.page_parts import Part, Section
from deltafit.experiments.summary import headline, summary
from deltafit.experiments.tables import (
    NOTHING,
    Row,
    cells_of,
    format_bytes,
    format_metric,
    format_seconds,
    headers_of,
    is_best,
    metric_title,
    remarks,
)
from deltafit.experiments.verdict import advised, verdict
from deltafit.experiments.words import in_words

FIRST_COLUMNS = ("method", "after", "interval", "difference", "macro_f1", "share", "time")
ABOUT = ("about", "changes")  # facts that stand at the top


def report_page(
    rows: Sequence[Row],
    sections: Sequence[Section],
    how_to_read: str,
    facts: Mapping[str, Any],
) -> str:
    """Return the page as HTML. Whatever comes from outside, such as names, is escaped.

    Args:
        rows: of the comparison.
        sections: what comes below the table.
        how_to_read: what the table's figures are.
        facts: about data and environment.
    """
    shown = [
        {
            "title": section.title,
            "name": section.name,
            "text": " ".join(filter(None, (section.text, section.legend))),
            "parts": [
                _part(part, f"{section.name}-{index}")
                for index, part in enumerate(section.parts, start=1)
            ],
        }
        for section in sections
    ]
    chosen = advised(rows)
    return _template().render(
        title=title(facts),
        task=task(rows, facts),
        headline=headline(rows),
        advised=what_it_is(chosen, facts),
        where=where_it_is(chosen),
        verdict=verdict(rows),
        about=[facts[key] for key in ABOUT if facts.get(key)],
        tiles=_tiles(chosen),
        sentences=summary(rows),
        headers=[header for _, header in _columns(rows)],
        lines=[_line(row, [column for column, _ in _columns(rows)]) for row in rows],
        how_to_read=how_to_read,
        remarks=remarks(rows),
        sections=shown,
        facts=listed(facts),
    )


def listed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that stand in the report's last section, in words."""
    return {key: in_words(value) for key, value in facts.items() if key not in ABOUT}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("deltafit.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _part(part: Part, name: str) -> dict[str, Any]:
    picture = None
    if part.figure is not None:
        picture = inline_svg(part.figure(), name, part.caption)
    return {
        **{"caption": part.caption, "picture": picture},
        **{"table": part.table, "folded": part.folded},
        "lines": [
            {"name": name, "kind": "", "cells": [(cell, "") for cell in cells]}
            for name, *cells in (part.table.rows if part.table else ())
        ],
    }


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the table's columns and their titles: what decides first, for narrow screens."""
    titles = headers_of(rows)
    order = [*FIRST_COLUMNS, *(column for column in titles if column not in FIRST_COLUMNS)]
    return [(column, titles[column]) for column in order if column in titles]


def _line(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """Return a line of the table: its cells, each with what its figure is over seeds."""
    cells = cells_of(row)
    spreads = dict.fromkeys(cells, "")
    if row.get("macro_f1_interval"):
        ends = (format_metric(value, "macro_f1") for value in row["macro_f1_interval"])
        spreads["macro_f1"] = f"[{', '.join(ends)}]"
    for key, column, shown in (
        ("seconds_range", "time", format_seconds),
        ("peak_memory_range", "memory", format_bytes),
    ):
        if row.get(key):
            spreads[column] = " to ".join(map(shown, row[key]))
    return {
        "name": cells["method"],
        "kind": f"{row['kind']} best" if is_best(row) else row["kind"],
        "cells": [(cells[column], spreads[column]) for column in columns if column != "method"],
    }


def _tiles(chosen: Row | None) -> list[tuple[str, str]]:
    """Return the advised method's figures, each with its name."""
    if chosen is None:
        return []
    cells = cells_of(chosen)
    tiles = [
        (f"{metric_title([chosen])} {cells['interval']}", cells["after"]),
        ("of the parameters trained", cells["share"]),
        ("of training", cells["time"]),
        ("of memory at the peak of the whole process", cells["memory"]),
        ("to keep on disk", cells["saved"]),
    ]
    return [(name, figure) for name, figure in tiles if figure != NOTHING]
