"""What a report's page is made of below its table: sections with pictures and tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from deltafit.experiments.tables import Row
from deltafit.experiments.verdict import advised
from deltafit.experiments.words import named

MOST_RUNS = 6  # that get pictures of their own


@dataclass(frozen=True)
class Table:
    """Text in rows; the first column names what a row is of.

    Attributes:
        headers: of the columns.
        rows: their cells.
        records: the same for programs, as JSON values: fractions of one, seconds, bytes. Where
            only some rows are shown, all of them.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Part:
    """A picture or a table with its words, a picture and its figures as a table, or words alone.

    Attributes:
        caption: what it shows, in a sentence; or what there is to say.
        figure: makes the picture.
        table: the figures themselves; the page shows them on demand where there is a picture.
        folded: whether it opens on demand.
    """

    caption: str
    figure: Callable[[], Figure] | None = None
    table: Table | None = None
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: its id.
        title: its heading.
        text: how to read its figures.
        parts: what it shows; at least one.
        legend: how to read its pictures, for where these are.
    """

    name: str
    title: str
    text: str
    parts: Sequence[Part]
    legend: str = ""


def runs_in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the runs among judged rows: the advised one first, then the best."""
    chosen = advised(rows)
    runs = [row for row in rows if row["kind"] == "run"]
    return sorted(runs, key=lambda row: (row is not chosen, -row["after"]))


def pictured(names: Sequence[str]) -> tuple[Sequence[str], str]:
    """Return the first names, which get pictures, and a sentence on the others if there are any."""
    others = names[MOST_RUNS:]
    return names[:MOST_RUNS], f" Not drawn: {named(others)}." if others else ""
