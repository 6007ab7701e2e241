"""A table as the rest of the room sees it, and the decoded lines that every format starts from."""

import io
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
    """

    source: str
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Row]]
    notes: tuple[str, ...] = ()
    numbered: bool = True
    header: bool = False

    def sample(self) -> list[Row]:
        """Return the first thousand rows: enough to tell labels from texts."""
        return list(itertools.islice(self.read(), SAMPLE_ROWS))

    def place(self, row: Row, column: str | None = None) -> str:
        """Return "file, row 3 (line 5), column 'text'"."""
        return place_of(self.source, row.number, row.line if self.numbered else None, column)


def place_of(source: str, row: int, line: int | None, column: str | None) -> str:
    """Return "file, row 3 (line 5), column 'text'", without the line or column where it is None."""
    on_line = "" if line is None else f" (line {line})"
    return f"{source}, row {row}{on_line}" + ("" if column is None else f", column {column!r}")


class MalformedTableError(DeltafitError):
    """The rows do not form a table: ragged, a quote never closed, a line that is not JSON."""


class UndecodableError(Exception):
    """A byte that is not UTF-8, before the row and the column in which it stands are known.

    Attributes:
        line: the line in which it stands.
        before: that line up to the byte.
    """

    def __init__(self, problem: str, line: int, before: str) -> None:
        super().__init__(problem)
        self.line, self.before = line, before


def check_encoding(path: Path) -> None:
    """Refuse what the first bytes already tell: an empty file, UTF-16, a packed file."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DeltafitError(f"Could not read {path}: {error.strerror or error}.") from error
    if not start:
        raise DeltafitError(f"{path} is empty.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DeltafitError(f"{path} is UTF-16 text (byte 0). Save it as UTF-8.")
    if start.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise DeltafitError(f"{path} is a packed file, not text (byte 0). Unpack or export it.")


def decoded_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their endings; a byte order mark is dropped.

    Raises:
        DeltafitError: a byte is not UTF-8.
    """
    try:
        yield from raw_lines(path)
    except UndecodableError as error:
        raise DeltafitError(f"{path}, line {error.line}: {error}") from error


def raw_lines(path: Path) -> Iterator[str]:
    """Do the same for a caller that can add row and column, and so gets `UndecodableError`."""
    offset = count = 0
    with path.open("rb") as file:
        for raw in file:
            try:
                text, undecodable = raw.decode("utf-8"), None
            except UnicodeDecodeError as error:
                text, undecodable = raw[: error.start].decode("utf-8"), error
            text = text.removeprefix("\ufeff") if offset == 0 else text
            # A binary file is cut at \n alone; a lone \r ends a line for the csv module too.
            lines = io.StringIO(text, newline="").readlines() if "\r" in text else [text]
            if undecodable is not None:
                before = "" if lines[-1].endswith("\r") else lines.pop()
                yield from lines
                problem = _not_utf8(raw[undecodable.start], offset + undecodable.start)
                raise UndecodableError(problem, count + len(lines) + 1, before) from undecodable
            yield from lines
            offset += len(raw)
            count += len(lines)


def _not_utf8(value: int, place: int) -> str:
    byte = bytes([value])
    try:
        encoding, character = "Windows-1252", byte.decode("cp1252")
    except UnicodeDecodeError:
        encoding, character = "Latin-1", byte.decode("latin-1")
    return (
        f"byte {place} (0x{value:02X}) is not UTF-8. The file may be {encoding}, where that byte "
        f"is {character!r}; save it as UTF-8."
    )
