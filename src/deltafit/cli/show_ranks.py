"""How what ``ranks`` found looks in a terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from deltafit.cli.show import add_row, say, table_of
from deltafit.experiments.rank_report import (
    MATRIX_HEADER,
    PART_HEADER,
    RANK_HEADER,
    RankReport,
    how_to_read,
    matrix_cells,
    part_cells,
    rank_cells,
)

MATRICES_SHOWN = 12
# What a terminal too narrow for all columns does without first, and then: the report has it.
_FIRST = ("parameters", "accuracy\nwithout it", "accuracy\nalone")
_DISPENSABLE = ((), _FIRST, (*_FIRST, "macro\nF1 %", "changed"))


def show_ranks(console: Console, report: RankReport, output: Path | None) -> None:
    """Print the curve of ranks and the advice, then the parts and what can be left out."""
    say(console, f"{report.folder} on {report.source}, {report.count:,} rows")
    _show(console, "Cut to each rank", RANK_HEADER, [*map(rank_cells, report.ranks)])
    say(console, report.verdict)
    if report.parts:
        title = "Without some ΔW, and with it alone"
        _show(console, title, PART_HEADER, [*map(part_cells, report.parts)])
        say(console, report.about_parts)
    moved = sorted(report.matrices, key=lambda row: -row.energy)
    cells = [matrix_cells(row) for row in moved[:MATRICES_SHOWN]]
    _show(console, "Matrices, the largest change first", MATRIX_HEADER, cells)
    if len(moved) > MATRICES_SHOWN:
        say(console, f"{len(moved) - MATRICES_SHOWN} more are in --output and --json.")
    say(console, how_to_read(report).replace("*", ""))
    if output is not None:
        say(console, f"Report: {output / 'report.md'}")


def _show(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    for left_out in _DISPENSABLE:
        kept = [place for place, name in enumerate(header) if name not in left_out]
        table = _table(title, [header[place] for place in kept])
        for row in rows:
            add_row(table, *(row[place] for place in kept))
        options = console.options.update(max_width=10_000)
        if Measurement.get(console, options, table).maximum <= console.width:
            break
    console.print(table)


def _table(title: str, header: Sequence[str]) -> Table:
    """Return a table whose names fold where they must, and figures do not."""
    table = table_of(title, *header, left=(header[0],) if header[0] != "rank" else ())
    table.padding = (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.no_wrap = True
    return table
