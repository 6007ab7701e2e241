"""What a report's page is made of below its table: sections with pictures and tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

MOST_RUNS = 6  # that get pictures of their own


@dataclass(frozen=True)
class Table:
    """Text in rows; the first column names what a row is of."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A picture or a table with its words, or words alone.

    Attributes:
        caption: what it shows, in a sentence; or what there is to say.
        figure: makes the picture.
        table: or the figures themselves.
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
        text: how to read it.
        parts: what it shows; at least one.
    """

    name: str
    title: str
    text: str
    parts: Sequence[Part]
