"""CSV and TSV: quoting, headers, and rows that are not as wide as the first."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltafit.data.rows import (
    LABEL_NAMES,
    SAMPLE_ROWS,
    TEXT_NAMES,
    MalformedTableError,
    Row,
    Table,
    UndecodableError,
    decoded_lines,
    raw_lines,
)
from deltafit.errors import DeltafitError

# One text may be a whole book; the module's own limit is 131,072 characters. A larger number
# than this overflows a C long on Windows.
_LARGEST_CELL = 2**31 - 1


def open_delimited(path: Path, delimiter: str, named_columns: Sequence[str]) -> Table:
    """Open a CSV or TSV file; see `tables.open_table`."""
    notes: list[str] = []
    quoted = True
    if delimiter == "\t":
        quoted = _keeps_quotes(path)
        if not quoted:
            notes.append(f"{path}: read without quoting, since its quotation marks do not pair.")
    first = next(_records(path, delimiter, quoted, header=True), None)
    if first is None:
        raise DeltafitError(f"{path} has no rows.")
    header = tuple(cell.strip() for cell in first[1])
    _check_delimiter(path, header, delimiter)

    def rows(skip: int) -> Iterator[Row]:
        records = itertools.islice(_records(path, delimiter, quoted, bool(skip)), skip, None)
        for number, (line, cells) in enumerate(records, 1):
            yield Row(number, line, cells)

    if not set(named_columns) & set(header) and _is_data(
        header, list(itertools.islice(rows(1), SAMPLE_ROWS))
    ):
        notes.append(
            f"{path}: has no header; its first row is data, and its columns are called "
            "'column 1' and 'column 2'."
        )
        return Table(str(path), ("column 1", "column 2"), lambda: rows(0), tuple(notes))
    columns = tuple(name or f"column {place}" for place, name in enumerate(header, 1))
    _check_duplicates(path, columns)
    if next(rows(1), None) is None:
        raise DeltafitError(f"{path} has a header but no rows.")
    return Table(str(path), columns, lambda: rows(1), tuple(notes))


def _records(
    path: Path, delimiter: str, quoted: bool, header: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which the record begins, cells), blank lines left out, all equally wide."""
    csv.field_size_limit(_LARGEST_CELL)
    # strict: `"he said "hi" there"` is refused where the lenient reader would drop marks silently.
    reader = csv.reader(
        raw_lines(path),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    names: list[str] | None = None
    row, line = 0 if header else 1, 1
    try:
        for cells in reader:
            if cells:
                names = cells if names is None else names
                if len(cells) != len(names):
                    raise MalformedTableError(_ragged(path, row, line, cells, names, delimiter))
                yield line, cells
                row += 1
            line = reader.line_num + 1
    except UndecodableError as error:
        where = f", row {row}" if row else ", header"
        raise DeltafitError(f"{path}{where}{error}") from error
    except csv.Error as error:
        where = f"row {row}" if row else "header"
        raise MalformedTableError(
            f"{path}, {where} (line {line}): {error}. A cell that holds a quotation mark has to "
            'be put in quotes, with the mark doubled: "he said ""hi""".'
        ) from error


def _ragged(
    path: Path, row: int, line: int, cells: list[str], names: list[str], delimiter: str
) -> str:
    last = min(len(cells), len(names))
    column = names[last] if last < len(names) else names[-1]
    problem = "missing" if len(cells) < len(names) else "the last that should be there"
    mark = "comma" if delimiter == "," else "tab"
    return (
        f"{path}, row {row} (line {line}): {len(cells)} cells where the first row has "
        f"{len(names)}; column {column!r} is {problem}. A text that holds a {mark} or a line "
        "break has to be put in quotes."
    )


def _keeps_quotes(path: Path) -> bool:
    """Say whether a TSV file uses quotation marks as CSV does, or as plain characters.

    A file that breaks CSV's rules somewhere and is a table without them is plain. One that is no
    table either way is read with quotes, so that the error names the mark.
    """
    if not any('"' in line for line in decoded_lines(path)):
        return True
    for quoted in (True, False):
        try:
            for _ in _records(path, "\t", quoted, header=True):
                pass
        except MalformedTableError:
            continue
        return quoted
    return True


def _is_data(first: tuple[str, ...], below: list[Row]) -> bool:
    if len(first) != 2 or any(cell.casefold() in TEXT_NAMES + LABEL_NAMES for cell in first):
        return False
    for place, cell in enumerate(first):
        values = [row.cells[place].strip() for row in below]
        if cell and cell in values and len(set(values)) <= len(values) / 2:
            return True
    return False


def _check_delimiter(path: Path, header: tuple[str, ...], delimiter: str) -> None:
    if len(header) > 1:
        return
    for other, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if other != delimiter and other in header[0]:
            raise MalformedTableError(
                f"{path}, header (line 1): the only column is {header[0]!r}, so the file seems to "
                f"be separated by {name}. Save it as .csv with commas or as .tsv with tabs."
            )


def _check_duplicates(path: Path, columns: tuple[str, ...]) -> None:
    for name in columns:
        places = [str(place) for place, other in enumerate(columns, 1) if other == name]
        if len(places) > 1:
            raise MalformedTableError(
                f"{path}, header (line 1): the column {name!r} stands there {len(places)} times "
                f"(columns {', '.join(places)}). Rename or remove the others."
            )
