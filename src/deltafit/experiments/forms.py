"""Rows of figures as Markdown for people and as CSV for programs."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool] = ()
) -> str:
    """Return a Markdown table, its first column on the left and the others on the right.

    Cells are text, whatever characters they hold.

    Args:
        header: of each column.
        rows: the cells of each row.
        bold: of each row, whether its first cell is printed bold; none says that of no row.
    """
    text = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for row, is_bold in zip(rows, bold or [False] * len(rows), strict=True):
        name, *figures = row
        text.append(_line([f"**{name}**" if is_bold else name, *figures]))
    return "\n".join(text) + "\n"


def _as_text(cell: str) -> str:
    """Return a cell so that nothing in it is a column, a line or HTML."""
    return re.sub(r"([|<])", r"\\\1", " ".join(cell.splitlines()))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_as_text, cells)) + " |"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as CSV under those keys; nothing where there are no rows."""
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file.getvalue()
