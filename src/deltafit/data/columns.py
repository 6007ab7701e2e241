"""Which column holds the texts and which the labels: named by the person, or found."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltafit.data.rows import LABEL_NAMES, TEXT_NAMES, Table
from deltafit.errors import DeltafitError, UsageError

_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?")
_HOW_TO_NAME = (
    "Say which is which with text_column and label_column (--text-column, --label-column)."
)


@dataclass(frozen=True)
class Columns:
    """The two columns in use and how each was found ("named", "by its name", "by its values")."""

    text: str
    label: str
    text_found: str
    label_found: str


def find_columns(
    table: Table, text_column: str | None = None, label_column: str | None = None
) -> Columns:
    """Find the text and the label column.

    A named column is taken as it is. Otherwise a column is found by its name, in any case (text,
    sentence, review, message, content, query; label, category, class, intent, target, sentiment).
    Where that leaves exactly one other column, it is taken if its values look the part: labels
    repeat, texts are strings that mostly differ.

    Raises:
        DeltafitError: a named column is missing, or what was found is ambiguous or nothing.
        UsageError: both names are the same.
    """
    if text_column is not None and text_column == label_column:
        raise UsageError(
            f"The text column and the label column are both {text_column!r}; name two columns."
        )
    text = _named(table, text_column, "text")
    label = _named(table, label_column, "label")
    text_found = "named" if text else "by its name"
    label_found = "named" if label else "by its name"
    text = text or _by_name(table, TEXT_NAMES, "text", taken=label)
    label = label or _by_name(table, LABEL_NAMES, "label", taken=text)
    if text is None and label is None:
        text, label = _two_columns(table)
        text_found = label_found = "by its values"
    elif label is None and text is not None:
        label, label_found = _remaining(table, text, "label"), "by its values"
    elif text is None and label is not None:
        text, text_found = _remaining(table, label, "text"), "by its values"
    if text is None or label is None:
        raise _not_found(table, "text" if text is None else "label")
    return Columns(text, label, text_found, label_found)


def find_text_column(table: Table, text_column: str | None = None) -> str:
    """Find the text column of a table that may have no labels.

    Raises:
        DeltafitError: the named column is missing, or none or several could be meant; or the first
            line of a file with one column may be its name or a text.
    """
    text = _named(table, text_column, "text") or _by_name(table, TEXT_NAMES, "text", taken=None)
    if text is None and len(table.columns) == 1:
        text = table.columns[0]
        # Nothing below tells a name from a text, and either guess puts every answer a row off.
        if table.header:
            raise DeltafitError(
                f"{table.source}, line 1: {text[:40]!r} may be the name of the only column or the "
                "first text. If it is the name, give it as text_column (--text-column); if it is "
                "a text, add the line 'text' above it, or give a .txt file with one text a line."
            )
    if text is None:
        label = _by_name(table, LABEL_NAMES, "label", taken=None)
        text = _remaining(table, label, "text") if label else _two_columns(table)[0]
    if text is None:
        raise _not_found(table, "text")
    return text


def nearest(word: str, known: Sequence[str]) -> str:
    """Return " Did you mean 'x'?" for the known word most like this one, or nothing."""
    folded = {name.casefold(): name for name in reversed(known)}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def is_number(cell: object) -> bool:
    """Say whether a cell is, or reads as, a number, "3.1" or "3,1" (a bool is not one)."""
    if isinstance(cell, str):
        return _NUMBER.fullmatch(cell.strip()) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in columns)


def _named(table: Table, column: str | None, role: str) -> str | None:
    if column is not None and column not in table.columns:
        raise DeltafitError(
            f"{table.source} has no column {column!r} for the {role}s. Its columns are "
            f"{_listed(table.columns)}.{nearest(column, table.columns)}"
        )
    return column


def _by_name(table: Table, known: Sequence[str], role: str, taken: str | None) -> str | None:
    found = [name for name in table.columns if name.casefold() in known and name != taken]
    if len(found) > 1:
        raise DeltafitError(
            f"{table.source}: the {role}s could be in any of the columns {_listed(found)}. Name "
            f"one with {role}_column (--{role}-column)."
        )
    return found[0] if found else None


def _values(table: Table, column: str) -> list[object]:
    place = table.columns.index(column)
    return [row.cells[place] for row in table.sample()]


def _distinct(values: Sequence[object]) -> int:
    return len({str(value).strip() for value in values})


def _looks_like_labels(values: Sequence[object]) -> bool:
    return _distinct(values) <= max(2, len(values) // 2)


def _looks_like_texts(values: Sequence[object]) -> bool:
    numbers = sum(not isinstance(value, str) or is_number(value) for value in values)
    return numbers < len(values) / 2


def _remaining(table: Table, taken: str, role: str) -> str | None:
    others = [name for name in table.columns if name != taken]
    fits = _looks_like_labels if role == "label" else _looks_like_texts
    return others[0] if len(others) == 1 and fits(_values(table, others[0])) else None


def _two_columns(table: Table) -> tuple[str | None, str | None]:
    if len(table.columns) != 2:
        return None, None
    first, second = table.columns
    values = {name: _values(table, name) for name in table.columns}
    fitting = [
        (text, label)
        for text, label in ((first, second), (second, first))
        if _looks_like_texts(values[text])
        and _looks_like_labels(values[label])
        and _distinct(values[text]) > _distinct(values[label])
    ]
    return fitting[0] if len(fitting) == 1 else (None, None)


def _not_found(table: Table, role: str) -> DeltafitError:
    known = TEXT_NAMES if role == "text" else LABEL_NAMES
    return DeltafitError(
        f"{table.source}: no column is clearly the {role} column. The candidates are "
        f"{_listed(table.columns)}; one called {_listed(known)} would be found. {_HOW_TO_NAME} If "
        "these are values and not names, the file has no header: add one as its first line."
    )
