"""CSV and TSV: quoting, headers, and rows that are not as wide as the first."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deltafit.data.rows import (
    LABEL_NAMES,
    SAMPLE_ROWS,
    TEXT_NAMES,
    MalformedTableError,
    Row,
    Table,
)
from deltafit.data.text_files import TextFile, UndecodableError
from deltafit.errors import DeltafitError

# One text may be a whole book; the module's own limit is 131,072 characters. A larger number
# than this overflows a C long on Windows.
_LARGEST_CELL = 2**31 - 1
# What may make another format than the plain one right.
_DOUBTFUL = {",": re.compile(r'(?:^|,) +"'), "\t": re.compile('"')}


class _Format(NamedTuple):
    """How a file is cut into cells, in the words of `csv.reader`."""

    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL
    skipinitialspace: bool = False


class _Survey(NamedTuple):
    """What a format makes of a file.

    Attributes:
        rows: the number of records.
        spanning: whether a cell holds a line break and the delimiter, as several rows would that
            stray quotation marks put into one.
        spaced: the number of cells that begin with a space and a quotation mark.
    """

    rows: int
    spanning: bool
    spaced: int


def open_delimited(file: TextFile, delimiter: str, named_columns: Sequence[str]) -> Table:
    """Open a CSV or TSV file; see `tables.open_table`."""
    form, doubt = _choose_format(file, delimiter)
    notes = [*file.notes, *([f"{file}: {doubt}"] if doubt else [])]
    first = next(_records(file, form, header=True), None)
    if first is None:
        raise DeltafitError(f"{file} has no rows.")
    header = tuple(cell.strip() for cell in first[1])
    _check_delimiter(file, header, delimiter)

    def rows(skip: int) -> Iterator[Row]:
        records = itertools.islice(_records(file, form, bool(skip)), skip, None)
        for number, (line, cells) in enumerate(records, 1):
            yield Row(number, line, cells)

    if not set(named_columns) & set(header) and _is_data(
        header, list(itertools.islice(rows(1), SAMPLE_ROWS))
    ):
        notes.append(
            f"{file}: has no header; its first row is data, and its columns are called "
            "'column 1' and 'column 2'."
        )
        return Table(str(file), ("column 1", "column 2"), lambda: rows(0), tuple(notes))
    columns = tuple(name or f"column {place}" for place, name in enumerate(header, 1))
    _check_duplicates(file, columns)
    if next(rows(1), None) is None:
        raise DeltafitError(f"{file} has a header but no rows.")
    return Table(str(file), columns, lambda: rows(1), tuple(notes), header=True)


def _records(file: TextFile, form: _Format, header: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which the record begins, cells), blank lines left out, all equally wide."""
    csv.field_size_limit(_LARGEST_CELL)
    begun: list[str] = []  # the lines of the record that is being read

    def lines() -> Iterator[str]:
        for text in file.lines():
            begun.append(text)
            yield text

    # strict: `"he said "hi" there"` is refused where the lenient reader would drop marks silently.
    reader = csv.reader(lines(), strict=True, **form._asdict())
    names: list[str] | None = None
    row, line = 0 if header else 1, 1
    try:
        for cells in reader:
            if cells:
                names = cells if names is None else names
                if len(cells) != len(names):
                    raise MalformedTableError(_ragged(file, row, line, cells, names, form))
                yield line, cells
                row += 1
            line = reader.line_num + 1
            begun.clear()
    except UndecodableError as error:
        # Lenient, so that a cell which is still open counts.
        place = max(1, len(next(csv.reader([*begun, error.before], **form._asdict()), [])))
        titles = names if names and header else []
        column = repr(titles[place - 1].strip()) if place <= len(titles) else str(place)
        where = f"row {row}" if row else "header"
        raise DeltafitError(
            f"{file}, {where} (line {error.line}), column {column}: {error}"
        ) from error
    except csv.Error as error:
        where = f"row {row}" if row else "header"
        raise MalformedTableError(
            f"{file}, {where} (line {line}): {error}. A cell that holds a quotation mark has to "
            'be put in quotes, with the mark doubled: "he said ""hi""".'
        ) from error


def _ragged(
    file: TextFile, row: int, line: int, cells: list[str], names: list[str], form: _Format
) -> str:
    last = min(len(cells), len(names))
    column = names[last] if last < len(names) else names[-1]
    problem = "missing" if len(cells) < len(names) else "the last that should be there"
    mark = "comma" if form.delimiter == "," else "tab"
    return (
        f"{file}, row {row} (line {line}): {len(cells)} cells where the first row has "
        f"{len(names)}; column {column!r} is {problem}. A text that holds a {mark} or a line "
        "break has to be put in quotes."
    )


def _choose_format(file: TextFile, delimiter: str) -> tuple[_Format, str | None]:
    """Return the format that a file keeps, and a sentence where that is not plain CSV or TSV.

    Without quoting is read a TSV file which quotation marks would make no table, or in which they
    would put whole rows into a cell. With the spaces after its commas dropped is read a CSV file
    in which they stand before quotes (`a, "b"`) and the rows stay the same. A file that is no
    table either way is read plainly, so that the error names the mark.
    """
    plain = _Format(delimiter)
    if not _is_doubtful(file, delimiter):
        return plain, None
    usual = _survey(file, plain)
    if delimiter == "\t":
        literal = plain._replace(quoting=csv.QUOTE_NONE)
        if (usual and not usual.spanning) or _survey(file, literal) is None:
            return plain, None
        reason = "would put several rows into one" if usual else "do not pair"
        return literal, f"read without quoting, since its quotation marks {reason}."
    spaced = plain._replace(skipinitialspace=True)
    other = _survey(file, spaced)
    if other is None or (usual and (usual.rows != other.rows or usual.spaced <= other.spaced)):
        return plain, None
    return spaced, "read without the spaces after its commas, since they stand before quotes."


def _is_doubtful(file: TextFile, delimiter: str) -> bool:
    try:
        return any(_DOUBTFUL[delimiter].search(line) for line in file.lines())
    except UndecodableError:  # whoever reads the rows can say in which it stands
        return False


def _survey(file: TextFile, form: _Format) -> _Survey | None:
    """Return what a format makes of a file, or None if that is no table."""
    rows, spanning, spaced = 0, False, 0
    try:
        for _, cells in _records(file, form, header=True):
            rows += 1
            for cell in cells:
                spanning |= form.delimiter in cell and ("\n" in cell or "\r" in cell)
                spaced += cell.startswith(" ") and cell.lstrip(" ").startswith('"')
    except MalformedTableError:
        return None
    return _Survey(rows, spanning, spaced)


def _is_data(first: tuple[str, ...], below: list[Row]) -> bool:
    if len(first) != 2 or any(cell.casefold() in TEXT_NAMES + LABEL_NAMES for cell in first):
        return False
    for place, cell in enumerate(first):
        values = [row.cells[place].strip() for row in below]
        if cell and cell in values and len(set(values)) <= len(values) / 2:
            return True
    return False


def _check_delimiter(file: TextFile, header: tuple[str, ...], delimiter: str) -> None:
    if len(header) > 1:
        return
    for other, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if other != delimiter and other in header[0]:
            raise MalformedTableError(
                f"{file}, header (line 1): the only column is {header[0]!r}, so the file seems to "
                f"be separated by {name}. Save it as .csv with commas or as .tsv with tabs."
            )


def _check_duplicates(file: TextFile, columns: tuple[str, ...]) -> None:
    for name in columns:
        places = [str(place) for place, other in enumerate(columns, 1) if other == name]
        if len(places) > 1:
            raise MalformedTableError(
                f"{file}, header (line 1): the column {name!r} stands there {len(places)} times "
                f"(columns {', '.join(places)}). Rename or remove the others."
            )
