"""Open a table file of any format that is read here."""

from collections.abc import Sequence
from pathlib import Path

from deltafit.data.delimited import open_delimited
from deltafit.data.json_lines import open_json_lines
from deltafit.data.parquet import open_parquet
from deltafit.data.rows import Table
from deltafit.data.text_files import open_text
from deltafit.errors import DeltafitError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_PACKED = ".gz"


def format_of(path: Path) -> str | None:
    """Return the suffix that decides a table's format; None of what is no table.

    That of reviews.csv.gz is .csv; Parquet is packed as it is.
    """
    suffix = path.suffix.lower()
    if suffix == _PACKED:
        suffix = path.with_suffix("").suffix.lower()
        return suffix if suffix in (*_DELIMITERS, *_JSON_LINES) else None
    return suffix if suffix in (*_DELIMITERS, *_JSON_LINES, *_PARQUET) else None


def stem_of(path: Path) -> str:
    """Return the name of a table's file without what says its format."""
    return Path(path.stem).stem if path.suffix.lower() == _PACKED else path.stem


def open_table(path: Path, named_columns: Sequence[str] = ()) -> Table:
    """Open a table; the suffix decides the format.

    A TSV file is read with CSV's quotes where the whole file keeps their rules, and literally
    where it does not, or where quotes would put into one cell several lines which are rows without
    them. A CSV file may have spaces between its commas and its quotes. A two-column CSV or TSV
    file needs no header: where one cell of the first row comes back below it as one of a few
    repeated values, that row is data and the columns are called "column 1" and "column 2". Text
    that is not UTF-8 is read as Windows-1252 where it can be. Such decisions are in the table's
    notes.

    Args:
        path: a .csv, .tsv, .tab, .jsonl, .ndjson or (as JSON Lines) .json file, which may be packed
            with gzip; or a .parquet or .pq file.
        named_columns: columns that the person named; a first row that holds one is a header.

    Raises:
        DeltafitError: the file cannot be read, has an unknown suffix or no rows.
        MalformedTableError: its rows do not form a table.
    """
    suffix = format_of(path)
    if suffix is None:
        ending = "".join(
            path.suffixes[-2:] if path.suffix.lower() == _PACKED else path.suffixes[-1:]
        )
        raise DeltafitError(
            f"{path}: the suffix {ending or '(none)'} is not known. Give a file that ends in "
            ".csv, .tsv, .jsonl (each also with .gz) or .parquet."
        )
    if suffix in _PARQUET:
        return open_parquet(path)
    file = open_text(path)
    if suffix in _JSON_LINES:
        return open_json_lines(file)
    return open_delimited(file, _DELIMITERS[suffix], named_columns)
