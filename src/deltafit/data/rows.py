"""A table as the rest of the room sees it, whatever format it is read from."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deltafit.errors import DeltafitError

# Enough to tell labels from texts.
SAMPLE_ROWS = 1000
# Names by which columns are found; a first row that holds one of them is a header.
TEXT_NAMES = ("text", "sentence", "review", "message", "content", "query")
LABEL_NAMES = ("label", "category", "class", "intent", "target", "sentiment")


class Row(NamedTuple):
    """One data row.

    ``number`` counts data rows from 1 (a header is not counted); ``line`` is the line of the file
    on which the row begins, which differs where a quoted cell spans lines.
    """

    number: int
    line: int
    cells: Sequence[Any]


@dataclass(frozen=True)
class Table:
    """Named columns and a way to read their rows, from the start, as often as wanted.

    Attributes:
        source: the file, or the name and part of a data set, for messages.
        columns: the column names in order.
        read: gives a new iterator over the rows.
        notes: what was decided in reading it, one sentence each.
        numbered: whether rows stand on lines of a file.
        header: whether the names are the file's first row, which might be data after all.
        files: of the rows, where each has one of its own.
    """

    source: str
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Row]]
    notes: tuple[str, ...] = ()
    numbered: bool = True
    header: bool = False
    files: tuple[str, ...] | None = None

    def sample(self) -> list[Row]:
        """Return the first thousand rows: enough to tell labels from texts."""
        return list(itertools.islice(self.read(), SAMPLE_ROWS))

    def place(self, row: Row, column: str | None = None) -> str:
        """Return "file, row 3 (line 5), column 'text'", or the row's own file."""
        if self.files is not None:
            return self.files[row.number - 1]
        return place_of(self.source, row.number, row.line if self.numbered else None, column)


def place_of(source: str, row: int, line: int | None, column: str | None) -> str:
    """Return "file, row 3 (line 5), column 'text'", without the line or column where it is None."""
    on_line = "" if line is None else f" (line {line})"
    return f"{source}, row {row}{on_line}" + ("" if column is None else f", column {column!r}")


def seen_from(source: str, file: str) -> str:
    """Return "pos/07.txt": the file of a row that has one of its own, seen from its source."""
    return Path(file).relative_to(source).as_posix()


class MalformedTableError(DeltafitError):
    """The rows do not form a table: ragged, a quote never closed, a line that is not JSON."""
