"""JSON Lines: one object a line, its keys the columns."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from deltafit.data.rows import (
    SAMPLE_ROWS,
    MalformedTableError,
    Row,
    Table,
    place_of,
)
from deltafit.data.text_files import TextFile, UndecodableError
from deltafit.errors import DeltafitError

# The start of a line that ends within a string, and the key of that string.
_WITHIN_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*"(?:[^"\\]|\\.)*$')


def open_json_lines(file: TextFile) -> Table:
    """Open a JSON Lines file; the columns are the keys of its first thousand objects."""

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        row = 1
        try:
            for line, text in enumerate(file.lines(), 1):
                if text.strip():
                    yield line, _json_object(f"{file}, row {row} (line {line})", text)
                    row += 1
        except UndecodableError as error:
            key = _WITHIN_VALUE.search(error.before)
            place = place_of(str(file), row, error.line, key[1] if key else None)
            raise DeltafitError(f"{place}: {error}") from error

    # A dict keeps the order in which the keys first appear.
    columns = tuple(
        {key: None for _, keys in itertools.islice(objects(), SAMPLE_ROWS) for key in keys}
    )
    if not columns:
        raise DeltafitError(f"{file} has no rows.")

    def rows() -> Iterator[Row]:
        for number, (line, content) in enumerate(objects(), 1):
            yield Row(number, line, [content.get(name) for name in columns])

    return Table(str(file), columns, rows, file.notes)


def _json_object(place: str, text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise MalformedTableError(f"{place}: the key {twice!r} stands there twice.")
        return content

    try:
        content = json.loads(text.rstrip(), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise MalformedTableError(
            f"{place}, character {error.colno}: not valid JSON ({error.msg}). Every line has to "
            "be one whole JSON object."
        ) from error
    except (ValueError, RecursionError) as error:
        raise MalformedTableError(f"{place}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise MalformedTableError(
            f"{place}: expected one JSON object a line, found a {type(content).__name__}. A JSON "
            "array has to be written as JSON Lines."
        )
    return content
