"""Open a table file of any format that is read here."""

from collections.abc import Sequence
from pathlib import Path

from deltafit.data.delimited import open_delimited
from deltafit.data.json_lines import open_json_lines
from deltafit.data.rows import Table, check_encoding
from deltafit.errors import DeltafitError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*_DELIMITERS, *_JSON_LINES)


def open_table(path: Path, named_columns: Sequence[str] = ()) -> Table:
    """Open a table; the suffix decides the format.

    A TSV file is read with CSV's quotes where the whole file keeps their rules, and literally
    where it does not, or where quotes would put into one cell several lines which are rows without
    them. A CSV file may have spaces between its commas and its quotes. A two-column CSV or TSV
    file needs no header: where one cell of the first row comes back below it as one of a few
    repeated values, that row is data and the columns are called "column 1" and "column 2". Such
    decisions are in the table's notes.

    Args:
        path: a .csv, .tsv, .tab, .jsonl, .ndjson or (as JSON Lines) .json file, in UTF-8.
        named_columns: columns that the person named; a first row that holds one is a header.

    Raises:
        DeltafitError: the file cannot be read, has an unknown suffix or no rows.
        MalformedTableError: its rows do not form a table.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DeltafitError(
            f"{path}: the suffix {suffix or '(none)'} is not known. Give a file that ends in .csv, "
            ".tsv or .jsonl."
        )
    check_encoding(path)
    if suffix in _JSON_LINES:
        return open_json_lines(path)
    return open_delimited(path, _DELIMITERS[suffix], named_columns)
