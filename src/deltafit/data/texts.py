"""Texts with their labels as read from a table, each row checked."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltafit.data.columns import Columns, nearest
from deltafit.data.labels import LabelSet, check_classes, label_name, label_set
from deltafit.data.rows import Row, Table, place_of, seen_from
from deltafit.errors import DeltafitError

_LISTED = 8


@dataclass(frozen=True)
class LabelledTexts:
    """Rows of one part of a data set.

    Attributes:
        texts: the texts as they stand in the file, outer whitespace included.
        labels: the id of each text's class, an index into ``label_names``.
        label_names: the names of the classes.
        source: the file, or the name and part of a data set.
        rows: the number of each row in its source, from 1, a header not counted.
        lines: the line of the file on which each row begins; None where there are no lines.
        column: the column of the texts.
        files: of the rows of the source, by their number, where each has one of its own.
        notes: sentences on how they were read, of rows to evaluate a finished classifier on.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    label_names: tuple[str, ...]
    source: str
    rows: tuple[int, ...]
    lines: tuple[int, ...] | None
    column: str
    files: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> "LabelledTexts":
        """Return the rows at these indices, in their order."""
        return LabelledTexts(
            texts=tuple(self.texts[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
            label_names=self.label_names,
            source=self.source,
            rows=tuple(self.rows[index] for index in indices),
            lines=None if self.lines is None else tuple(self.lines[index] for index in indices),
            column=self.column,
            files=self.files,
        )

    def place(self, index: int) -> str:
        """Return where the text of an index stands: "file, row 3 (line 5), column 'text'"."""
        if self.files is not None:
            return self.files[self.rows[index] - 1]
        line = None if self.lines is None else self.lines[index]
        return place_of(self.source, self.rows[index], line, self.column)

    def own_file(self, index: int) -> str:
        """Return the file of a text that has one of its own, seen from the source."""
        return seen_from(self.source, self.place(index))

    def content_hash(self) -> str:
        r"""Return the SHA-256 over label names, texts and labels, in order.

        It is the same on every platform and for every file format; line breaks inside a text
        count as \n, since version control may have rewritten them.
        """
        digest = hashlib.sha256(json.dumps(self.label_names).encode())
        for text, label in zip(self.texts, self.labels, strict=True):
            line = [text.replace("\r\n", "\n"), self.label_names[label]]
            digest.update(b"\n" + json.dumps(line).encode())
        return digest.hexdigest()


def checked_texts(table: Table, column: str) -> Iterator[tuple[Row, str]]:
    """Yield every row with its text.

    Raises:
        DeltafitError: a text is empty, not a string, or half of a character.
    """
    place = table.columns.index(column)
    for row in table.read():
        cell = row.cells[place]
        if problem := text_problem(cell):
            more = [row, *(other for other in _later(table, row) if _same(other, place, problem))]
            raise _refusal(table, column, more, problem, "Remove such rows or fill them in")
        yield row, cell


def text_problem(cell: object) -> str | None:
    """Return what is wrong with a text, or None."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "the text is empty"
    if not isinstance(cell, str):
        return f"the text is not a string but {_kind(cell)}"
    return "the text holds half of a character (a lone surrogate)" if _half(cell) else None


def _half(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _checked_label(table: Table, column: str, row: Row) -> str | None:
    """Return the name of a row's label, or None where it is missing."""
    cell = row.cells[table.columns.index(column)]
    try:
        name = label_name(cell)
    except TypeError:
        problem = f"the label is {_kind(cell)}"
        raise _refusal(table, column, [row], problem, "Write one label a row") from None
    if name is not None and _half(name):
        problem = "the label holds half of a character (a lone surrogate)"
        raise _refusal(table, column, [row], problem, "Correct it")
    return name


def _same(row: Row, place: int, problem: str) -> bool:
    return text_problem(row.cells[place]) == problem


def _later(table: Table, row: Row) -> Iterator[Row]:
    return (other for other in table.read() if other.number > row.number)


def _kind(cell: object) -> str:
    if isinstance(cell, bool):
        return "a boolean"
    if isinstance(cell, int | float):
        return "a number"
    return "a list" if isinstance(cell, list) else "an object"


def _refusal(
    table: Table, column: str, rows: Sequence[Row], problem: str, advice: str
) -> DeltafitError:
    """Name the first row in full and the others by number, so that all are mended at once."""
    named = table.files is not None
    others = [
        seen_from(table.source, table.place(row)) if named else str(row.number)
        for row in rows[1 : _LISTED + 1]
    ]
    more = ""
    if others:
        dots = ", …" if len(rows) > _LISTED + 1 else ""
        what = f"{'' if named else 'row '}{', '.join(others)}{dots}"
        more = f" The same in {len(rows) - 1:,} more ({what})."
    return DeltafitError(f"{table.place(rows[0], column)}: {problem}.{more} {advice}.")


def read_labelled(
    table: Table,
    columns: Columns,
    known: LabelSet | None = None,
    renamed: Mapping[str, str] | None = None,
) -> tuple[LabelledTexts, LabelSet]:
    """Read and check every row of a table.

    Args:
        table: the table.
        columns: which columns to read.
        known: the classes of the training part; without it the table defines them.
        renamed: names for labels that a data set writes as codes, such as {"0": "ham"}.

    Returns:
        the rows, and the classes.

    Raises:
        DeltafitError: an empty text, a missing label, a label that training never had, or (where
            the table defines the classes) one class only, a continuous column, or a class in two
            notations.
    """
    if known is not None:
        _check_header(table, columns, known)
    texts: list[str] = []
    names: list[str] = []
    rows: list[Row] = []
    missing: list[Row] = []
    for row, text in checked_texts(table, columns.text):
        name = _checked_label(table, columns.label, row)
        if name is None:
            missing.append(row)
            continue
        texts.append(text)
        names.append((renamed or {}).get(name, name))
        rows.append(Row(row.number, row.line, ()))
    if missing:
        raise _refusal(
            table, columns.label, missing, "the label is missing", "Remove such rows or label them"
        )
    if known is None:
        check_classes(names, f"{table.source}, column {columns.label!r}")
    classes = known or label_set(names)
    labelled = LabelledTexts(
        texts=tuple(texts),
        labels=_encode(names, classes, table, columns.label, rows),
        label_names=classes.names,
        source=table.source,
        rows=tuple(row.number for row in rows),
        lines=tuple(row.line for row in rows) if table.numbered else None,
        column=columns.text,
        files=table.files,
    )
    return labelled, classes


def _check_header(table: Table, columns: Columns, known: LabelSet) -> None:
    """Refuse a first line that says what a row says: a class of the training part for its label."""
    by_values = columns.label_found == "by its values"
    if table.header and by_values and known.find(columns.label) is not None:
        raise DeltafitError(
            f"{table.source}, line 1: {columns.label!r} is one of the classes, so the file seems "
            "to have no header and this to be its first row. Add a header, such as text,label, as "
            "its first line."
        )


def _encode(
    names: Sequence[str], classes: LabelSet, table: Table, column: str, rows: Sequence[Row]
) -> tuple[int, ...]:
    ids = [classes.find(name) for name in names]
    if None in ids:
        unseen = [index for index, found in enumerate(ids) if found is None]
        name = names[unseen[0]]
        others = sorted({names[index] for index in unseen} - {name})
        also = f" (and so were {', '.join(map(repr, others[:_LISTED]))})" if others else ""
        known = ", ".join(repr(known) for known in classes.names[:_LISTED])
        known += ", …" if len(classes.names) > _LISTED else ""
        raise _refusal(
            table,
            column,
            [rows[index] for index in unseen],
            f"the label {name!r} was never seen in training{also}",
            f"Training has {len(classes.names)} classes: {known}.{nearest(name, classes.names)} "
            "Correct the label, remove the row, or add such rows to the training part",
        )
    return tuple(found for found in ids if found is not None)
