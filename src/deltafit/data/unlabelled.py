"""Texts to classify: a column of a table, or a plain file with one text a line."""

from collections.abc import Callable, Iterator
from pathlib import Path

from deltafit.data.columns import find_text_column
from deltafit.data.label_folders import is_text
from deltafit.data.sources import find_data
from deltafit.data.text_files import open_text
from deltafit.data.texts import checked_texts
from deltafit.errors import DeltafitError, UsageError


def iterate_texts(
    data: str | Path,
    *,
    text_column: str | None = None,
    note: Callable[[str], object] = lambda sentence: None,
) -> Iterator[tuple[int, str]]:
    """Yield (row number, text) as the file is read, so that its size does not matter.

    Args:
        data: a table; a .txt or .txt.gz file with one text a line (empty lines are passed over,
            rows are line numbers); or a folder or catalogue name, whose test part is read if there
            is one and its training part otherwise. Labels are not needed and not looked at.
        text_column: the column of texts, where it is not to be found by itself.
        note: told each thing that was decided in reading it, before the first text.

    Raises:
        DeltafitError: the data cannot be read, or a text is empty. Rows before it were yielded.
        UsageError: a text column was named for a .txt file.
    """
    path = Path(data).expanduser()
    if is_text(path):
        if text_column is not None:
            raise UsageError(f"{path} is plain text without columns; leave the text column out.")
        yield from _lines(path, note)
        return
    source = find_data(data)
    part = "test" if "test" in source.parts else "train"
    table = source.open(part, [text_column] if text_column else [])
    for sentence in table.notes:
        note(sentence)
    for row, text in checked_texts(table, find_text_column(table, text_column)):
        yield row.number, text


def _lines(path: Path, note: Callable[[str], object]) -> Iterator[tuple[int, str]]:
    file, empty = open_text(path), True
    for sentence in file.notes:
        note(sentence)
    for number, line in enumerate(file.plain_lines(), 1):
        if line.strip():
            empty = False
            yield number, line.rstrip("\r\n")
    if empty:
        raise DeltafitError(f"{path} has no text on any line.")


def load_texts(
    data: str | Path, *, text_column: str | None = None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return all texts and their row numbers; see `iterate_texts`."""
    pairs = list(iterate_texts(data, text_column=text_column))
    return tuple(text for _, text in pairs), tuple(number for number, _ in pairs)
