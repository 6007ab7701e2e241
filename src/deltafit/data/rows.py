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
    """

    source: str
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Row]]
    notes: tuple[str, ...] = ()
    numbered: bool = True

    def sample(self) -> list[Row]:
        """Return the first thousand rows: enough to tell labels from texts."""
        return list(itertools.islice(self.read(), SAMPLE_ROWS))

    def place(self, row: Row, column: str | None = None) -> str:
        """Return "file, row 3 (line 5), column 'text'"."""
        line = f" (line {row.line})" if self.numbered else ""
        return f"{self.source}, row {row.number}{line}" + (f", column {column!r}" if column else "")


class MalformedTableError(DeltafitError):
    """The rows do not form a table: ragged, a quote never closed, a line that is not JSON."""


class UndecodableError(Exception):
    """A byte that is not UTF-8, before the data row in which it stands is known."""


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
        raise DeltafitError(f"{path}{error}") from error


def raw_lines(path: Path) -> Iterator[str]:
    """Do the same for a caller that can add the row, and so gets `UndecodableError`."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UndecodableError(_not_utf8(raw, error.start, offset, number)) from error
            offset += len(raw)
            line = line.removeprefix("\ufeff") if number == 1 else line
            # A binary file is cut at \n alone; a lone \r ends a line for the csv module too.
            yield from io.StringIO(line, newline="") if "\r" in line else (line,)


def _not_utf8(raw: bytes, start: int, offset: int, line: int) -> str:
    byte = raw[start : start + 1]
    try:
        encoding, character = "Windows-1252", byte.decode("cp1252")
    except UnicodeDecodeError:
        encoding, character = "Latin-1", byte.decode("latin-1")
    return (
        f", line {line}: byte {offset + start} (0x{byte[0]:02X}) is not UTF-8. The file may be "
        f"{encoding}, where that byte is {character!r}; save it as UTF-8."
    )
