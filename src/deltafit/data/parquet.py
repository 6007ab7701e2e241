"""Parquet: the columns and rows of a file that pyarrow reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltafit.data.rows import MalformedTableError, Row, Table
from deltafit.errors import DeltafitError

_ROWS = 1024  # that are in memory at a time


def open_parquet(path: Path) -> Table:
    """Open a Parquet file; its rows have numbers, and no lines.

    Raises:
        DeltafitError: pyarrow is not installed, or the file cannot be read or has no rows.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DeltafitError(
            f"{path}: Parquet files are read by pyarrow, which is not installed. Install it with "
            "pip install 'deltafit[parquet]', or save the table as .csv."
        ) from error
    try:
        with ParquetFile(path) as file:
            names, count = [field.name for field in file.schema_arrow], file.metadata.num_rows
    except (OSError, ArrowException) as error:
        raise DeltafitError(f"Could not read {path} as Parquet: {error}.") from error
    if not count:
        raise DeltafitError(f"{path} has no rows.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise MalformedTableError(f"{path}: the column {twice[0]!r} is there more than once.")

    def rows() -> Iterator[Row]:
        try:
            with ParquetFile(path) as file:
                number = 0
                for batch in file.iter_batches(_ROWS):
                    columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
                    for cells in zip(*columns, strict=True):
                        number += 1
                        yield Row(number, number, cells)
        except (OSError, ArrowException) as error:
            raise DeltafitError(f"Could not read {path} as Parquet: {error}.") from error

    return Table(str(path), tuple(names), rows, numbered=False)
