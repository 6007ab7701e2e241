"""A comparison as a table for the terminal, as wide as that is."""

import re
from collections.abc import Callable, Sequence

from rich import box, get_console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from deltafit.experiments.tables import (
    NOTHING,
    Row,
    cells_of,
    headers_of,
    is_best,
    metric_title,
    remarks,
)


def comparison_table(rows: Sequence[Row], width: int | None = None) -> Table:
    """Lay the comparison out for a terminal ``width`` characters wide (None: the present one).

    Where one line a method does not fit, related figures share a column, one above the other, so
    that 80 columns show all of them and nothing is cut off.
    """
    console = get_console()
    available = width or console.width
    options = console.options.update(max_width=10_000)
    nameless = [
        {**row, "name": "", "seeds": 1, "failed_seeds": 0} for row in rows
    ]  # names fold, figures do not
    for layout in (_one_line_table, _stacked_table):
        # The maximum: rich's minimum would let figures fold, which their columns do not do.
        if Measurement.get(console, options, layout(nameless)).maximum <= available:
            table = layout(rows)
            break
    else:
        table = _listed_table(rows)
    said = remarks(rows)
    if said:
        table.caption = Text("\n".join(said))
        table.caption_justify = "left"
    return table


def _one_line_table(rows: Sequence[Row]) -> Table:
    headers = headers_of(rows)
    table = _new_table([*headers.values()], method_width=24)
    _add_rows(table, rows, lambda cells: [cells[column] for column in headers])
    return table


def _stacked_table(rows: Sequence[Row]) -> Table:
    metric, shown = metric_title(rows), headers_of(rows)
    figure = f"before →\n{metric}\n[95 % int.]" + ("\nno dupl." if "new_rows" in shown else "")
    size = "trained\nshare" + ("\nrate" if "rate" in shown else "")
    table = _new_table(
        [
            *("method", size, figure, "macro\nF1 %"),
            *("time\nspeed", "memory\nsaved", "difference\nto best"),
        ],
        method_width=12,
    )

    def stack(cells: dict[str, str]) -> list[str]:
        before, after, speed = cells["before"], cells["after"], cells["speed"]
        return [
            _foldable(cells["method"]),
            _lines(cells["trainable"], cells["share"], cells["rate"] if "rate" in shown else ""),
            _lines(
                after if before == NOTHING else f"{before} → {after}",
                cells["interval"],
                cells["new_rows"] if "new_rows" in shown else "",
            ),
            cells["macro_f1"],
            _lines(cells["time"], speed if speed == NOTHING else f"{speed} ex/s"),
            _lines(cells["memory"], cells["saved"]),
            re.sub(r" \(| (?=\[)", "\n", cells["difference"]).rstrip(")"),
        ]

    _add_rows(table, rows, stack)
    return table


def _listed_table(rows: Sequence[Row]) -> Table:
    """Give each method its figures as running text: for terminals too narrow for columns."""
    table = Table("method", "figures", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"

    def listed(cells: dict[str, str]) -> list[str]:
        named = {title: cells[column] for column, title in headers_of(rows).items()}
        name, difference = named.pop("method"), named.pop("difference to best")
        figures = [f"{header} {cell}" for header, cell in named.items() if cell != NOTHING]
        to_best = "" if difference in ("best", "failed") else "difference to best "
        return [_foldable(name), "; ".join([*figures, to_best + difference])]

    _add_rows(table, rows, listed)
    return table


def _foldable(name: str) -> str:
    """Let a list of settings or targets fold at its commas."""
    return re.sub(r",(?=\S)", ", ", name)


def _lines(first: str, *others: str) -> str:
    return "\n".join([first, *(other for other in others if other not in ("", NOTHING))])


def _new_table(headers: Sequence[str], method_width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(headers[0], overflow="fold", min_width=method_width)
    for header in headers[1:]:
        # Figures never fold: only the method gives way when the terminal is narrow.
        table.add_column(Text(header), justify="right", no_wrap=True, overflow="fold")
    return table


def _add_rows(
    table: Table, rows: Sequence[Row], arrange: Callable[[dict[str, str]], list[str]]
) -> None:
    for index, row in enumerate(rows):
        last_of_kind = index + 1 < len(rows) and rows[index + 1].get("kind") != row.get("kind")
        cells = [Text(cell) for cell in arrange(cells_of(row))]  # Text: "[" is no markup here
        table.add_row(*cells, style="bold" if is_best(row) else None, end_section=last_of_kind)
