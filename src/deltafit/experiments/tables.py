"""One comparison as a table for the terminal and in Markdown; and how its figures are written.

A row is a mapping with the keys ``name``, ``kind`` ("baseline" or "run"), ``result_name``,
``trainable``, ``total``, ``metric_name``, ``count`` (how many rows were judged), ``before``,
``after``, ``interval`` (its 95 %, ``[low, high]``), ``macro_f1``, ``seconds``,
``examples_per_second``, ``peak_memory_bytes``, ``saved_bytes``, ``difference`` (the fields of a
`PairedComparison` with the best row; None for that row itself), ``against_baseline`` (of a run: the
best cheap baseline's ``name``, and the fields of the `PairedComparison` with it), likewise
``against_full`` (with full fine-tuning) and ``against_advised`` (with what the verdict advises),
``validation`` and ``training`` (a run's result on those rows, where it was measured),
``seeds`` (of which the figures are), ``failed_seeds`` (how many are left out), ``settings`` (the
method's, as ``Method.to_dict`` gives them), ``targets`` (the names within a block of what it
adapted, where that is known), ``learning_rate``, ``searched`` (the names of settings that a search
has chosen) and its ``trials``, ``varied`` (hyperparameters in which the comparison's runs differ),
``notes`` and ``failure``; and of its figures over seeds ``macro_f1_interval`` (95 %),
``seconds_range`` and ``peak_memory_range`` (smallest and largest). Whatever a row lacks is a dash.

``failure`` is None, or says of a method that cannot be judged what happened, without its subject,
and what to do: "diverged at step 40: loss nan. Lower --lr.". Such a row has no figures and no
difference, and is not the best.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich import box, get_console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from deltafit.experiments.forms import markdown_table

Row = Mapping[str, Any]
Outcome = Literal["within noise", "undecided", "better", "worse"]

NOTHING = "–"
PERCENT_METRICS = frozenset({"accuracy", "macro_f1", "weighted_f1"})


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


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what is to be said of single rows, "name: remark" each: failures and notes."""
    return [
        f"{row['name']}: {remark}"
        for row in rows
        for remark in (*filter(None, [row.get("failure")]), *(row.get("notes") or ()))
    ]


def comparison_markdown(rows: Sequence[Row]) -> str:
    """Return the comparison as a Markdown table, all figures in it, the best row in bold."""
    header, *lines = [headers_of(rows), *([*cells_of(row).values()] for row in rows)]
    return markdown_table(header, lines, bold=[is_best(row) for row in rows])


def is_best(row: Row) -> bool:
    """Say whether the others are compared with this row."""
    return row.get("difference") is None and not row.get("failure")


def format_metric(value: float | None, metric_name: str) -> str:
    """Return 0.9305 as "93.0" (per cent) for shares; losses keep three decimals."""
    if value is None:
        return NOTHING
    return f"{100 * value:.1f}" if metric_name in PERCENT_METRICS else f"{value:.3f}"


def format_count(count: int | None) -> str:
    """Return 22713216 as "22.7 M"."""
    if count is None:
        return NOTHING
    return _scaled(count, [(1e9, "G"), (1e6, "M"), (1e3, "k")]) or str(count)


def format_bytes(size: int | None) -> str:
    """Return 1180000 as "1.2 MB" (decimal units)."""
    if size is None:
        return NOTHING
    return _scaled(size, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]) or f"{size} B"


def format_seconds(seconds: float | None) -> str:
    """Return 250 as "4.2 min"."""
    if seconds is None:
        return NOTHING
    return _scaled(seconds, [(3600, "h"), (60, "min")]) or f"{seconds:.1f} s"


def format_difference(row: Row) -> str:
    """Return "best", "failed", "−2.1 [−3.0, −1.2]" or "within noise (−0.4 [−1.5, +0.7])".

    Or "undecided (−1.2 [−2.3, −0.1])", which is between the last two. In points of accuracy, with
    the 95 % interval as it is: it need not be symmetric.
    """
    if row.get("failure"):
        return "failed"
    if is_best(row):
        return "best"
    return with_outcome(format_points(row["difference"]), row["difference"])


def with_outcome(text: str, comparison: Mapping[str, Any]) -> str:
    """Return a difference as it is, or "undecided (…)" or "within noise (…)" where it is that."""
    outcome = outcome_of(comparison)
    return text if outcome in ("better", "worse") else f"{outcome} ({text})"


def outcome_of(comparison: Mapping[str, Any]) -> Outcome:
    """Return what may be said of a difference, given the fields of its `PairedComparison`."""
    if comparison["within_noise"]:
        return "within noise"
    if not comparison["beyond_noise"]:
        return "undecided"
    return "better" if comparison["difference"] > 0 else "worse"


def best_on_validation(rows: Sequence[Row]) -> Row:
    """Return the row with the best validation figure, the first of equal ones.

    The judged rows have no part in the choice, which would flatter what they judge; unless a row
    has no validation figure, and there is nothing else to choose by.

    Args:
        rows: that were judged; at least one.
    """
    key = "after" if any(row.get("validation") is None for row in rows) else "validation"
    return max(rows, key=lambda row: float(row[key]))


def gap_of(row: Row) -> float | None:
    """Return how much better a run does on its training rows than on the judged ones."""
    return None if row.get("training") is None else row["training"] - row["after"]


def format_points(comparison: Mapping[str, Any]) -> str:
    """Return "−0.4 [−1.5, +0.7]": a `PairedComparison`'s fields in points of accuracy."""
    points, low, high = (_signed(100 * comparison[key]) for key in ("difference", "low", "high"))
    return f"{points} [{low}, {high}]"


def _signed(points: float) -> str:
    # The sign says on which side of 0 a rounded 0.0 lies; what is 0 but for rounding has none.
    sign = "" if abs(points) < 1e-9 else "+" if points > 0 else "−"
    return f"{sign}{abs(points):.1f}"


def metric_title(rows: Sequence[Row]) -> str:
    """Return "accuracy %" or "log loss": the metric of the rows, with its unit."""
    name = str(rows[0]["metric_name"]) if rows else "accuracy"
    return name.replace("_", " ") + (" %" if name in PERCENT_METRICS else "")


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str | None:
    for size, unit in units:
        if value >= size:
            return f"{value / size:.{1 if value < 100 * size else 0}f} {unit}"
    return None


def share_of(row: Row) -> float | None:
    """Return the share of the parameters that is trained, 0 to 1."""
    trainable, total = row.get("trainable"), row.get("total")
    return trainable / total if trainable is not None and total else None


def cells_of(row: Row) -> dict[str, str]:
    """Return every figure of a row as it is shown, in the order of the full table."""
    metric, share, interval = row["metric_name"], share_of(row), row.get("interval")
    seeds, speed = row.get("seeds") or 1, row.get("examples_per_second")
    failed = row.get("failed_seeds") or 0
    among = f" ({seeds}{f' of {seeds + failed}' if failed else ''} seeds)"
    bounds = [format_metric(value, metric) for value in interval or ()]
    return {
        "method": row["name"] + (among if seeds + failed > 1 else ""),
        "trainable": format_count(row.get("trainable")),
        "share": NOTHING if share is None else f"{100 * share:.{0 if share == 1 else 2}f} %",
        "before": format_metric(row.get("before"), metric),
        "after": format_metric(row.get("after"), metric),
        "interval": f"[{', '.join(bounds)}]" if bounds else NOTHING,
        "macro_f1": format_metric(row.get("macro_f1"), "macro_f1"),
        "time": format_seconds(row.get("seconds")),
        "speed": NOTHING if not speed else f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}",
        "memory": format_bytes(row.get("peak_memory_bytes")),
        "saved": format_bytes(row.get("saved_bytes")),
        "difference": format_difference(row),
    }


def headers_of(rows: Sequence[Row]) -> list[str]:
    """Return the titles of the full table's columns."""
    metric = metric_title(rows)
    return [
        *("method", "trainable", "share", "before", metric, "95 % interval", "macro-F1 %"),
        *("time", "examples/s", "peak memory", "saved", "difference to best"),
    ]


def _one_line_table(rows: Sequence[Row]) -> Table:
    table = _new_table(headers_of(rows), method_width=24)
    _add_rows(table, rows, lambda cells: list(cells.values()))
    return table


def _stacked_table(rows: Sequence[Row]) -> Table:
    metric = metric_title(rows)
    table = _new_table(
        [
            *("method", "trained\nshare", f"before →\n{metric}\n[95 % int.]", "macro\nF1 %"),
            *("time\nspeed", "memory\nsaved", "difference\nto best"),
        ],
        method_width=12,
    )

    def stack(cells: dict[str, str]) -> list[str]:
        before, after, speed = cells["before"], cells["after"], cells["speed"]
        return [
            _foldable(cells["method"]),
            _two_lines(cells["trainable"], cells["share"]),
            _two_lines(after if before == NOTHING else f"{before} → {after}", cells["interval"]),
            cells["macro_f1"],
            _two_lines(cells["time"], speed if speed == NOTHING else f"{speed} ex/s"),
            _two_lines(cells["memory"], cells["saved"]),
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
        named = dict(zip(headers_of(rows), cells.values(), strict=True))
        name, difference = named.pop("method"), named.pop("difference to best")
        figures = [f"{header} {cell}" for header, cell in named.items() if cell != NOTHING]
        to_best = "" if difference in ("best", "failed") else "difference to best "
        return [_foldable(name), "; ".join([*figures, to_best + difference])]

    _add_rows(table, rows, listed)
    return table


def _foldable(name: str) -> str:
    """Let a list of settings or targets fold at its commas."""
    return re.sub(r",(?=\S)", ", ", name)


def _two_lines(first: str, second: str) -> str:
    return first if second == NOTHING else f"{first}\n{second}"


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
