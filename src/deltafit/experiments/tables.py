"""What a row of a comparison is, and how its figures are written.

A row is a mapping with the keys ``name``, ``kind`` ("baseline" or "run"), ``result_name``,
``trainable``, ``total``, ``metric_name``, ``count`` (how many rows were judged), ``before``,
``after``, ``interval`` (its 95 %, ``[low, high]``), ``after_new_rows`` (``after`` without
the judged rows whose text stands in training; None of no such rows), ``macro_f1``, ``seconds``,
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
``seconds_range`` and ``peak_memory_range`` (smallest and largest); and ``conditions`` (in words,
what its times depend on; rows in which these differ are not compared in time). Whatever a row lacks
is a dash.

``failure`` is None, or says of a method that cannot be judged what happened, without its subject,
and what to do: "diverged at step 40: loss nan. Lower --lr.". Such a row has no figures and no
difference, and is not the best.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deltafit.experiments.forms import markdown_table
from deltafit.experiments.words import named

Row = Mapping[str, Any]
Outcome = Literal["within noise", "undecided", "better", "worse"]

NOTHING = "–"
PERCENT_METRICS = frozenset({"accuracy", "macro_f1", "weighted_f1"})


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what is to be said of rows, "names: remark" each: failures and notes, once each."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for remark in (*filter(None, [row.get("failure")]), *(row.get("notes") or ())):
            said.setdefault(remark, []).append(row["name"])
    return [f"{named(names)}: {remark}" for remark, names in said.items()]


def comparison_markdown(rows: Sequence[Row]) -> str:
    """Return the comparison as a Markdown table, all figures in it, the best row in bold."""
    headers = headers_of(rows)
    lines = [[cells_of(row)[column] for column in headers] for row in rows]
    return markdown_table([*headers.values()], lines, bold=[is_best(row) for row in rows])


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
    """Return every figure of a row as it is shown, by its column, in the order of the full table.

    Not every column is in it: see `headers_of`.
    """
    metric, share, interval = row["metric_name"], share_of(row), row.get("interval")
    seeds, speed = row.get("seeds") or 1, row.get("examples_per_second")
    failed = row.get("failed_seeds") or 0
    among = f" ({seeds}{f' of {seeds + failed}' if failed else ''} seeds)"
    bounds = [format_metric(value, metric) for value in interval or ()]
    return {
        "method": row["name"] + (among if seeds + failed > 1 else ""),
        "trainable": format_count(row.get("trainable")),
        "share": NOTHING if share is None else f"{100 * share:.{0 if share == 1 else 2}f} %",
        "rate": NOTHING if not row.get("learning_rate") else f"{row['learning_rate']:g}",
        "before": format_metric(row.get("before"), metric),
        "after": format_metric(row.get("after"), metric),
        "interval": f"[{', '.join(bounds)}]" if bounds else NOTHING,
        "new_rows": format_metric(row.get("after_new_rows"), metric),
        "macro_f1": format_metric(row.get("macro_f1"), "macro_f1"),
        "time": format_seconds(row.get("seconds")),
        "speed": NOTHING if not speed else f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}",
        "memory": format_bytes(row.get("peak_memory_bytes")),
        "saved": format_bytes(row.get("saved_bytes")),
        "difference": format_difference(row),
    }


def headers_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the titles of the full table's columns, by column.

    Learning rates have one where rows differ in them, and so have figures without the judged rows
    that stand in training, where there are such.
    """
    metric = metric_title(rows)
    titles = {
        **{"method": "method", "trainable": "trainable", "share": "share"},
        **{"rate": "learning rate", "before": "before", "after": metric},
        **{"interval": "95 % interval", "new_rows": "without duplicates"},
        **{"macro_f1": "macro-F1 %", "time": "time", "speed": "examples/s"},
        **{"memory": "peak memory", "saved": "saved", "difference": "difference to best"},
    }
    rates = {row.get("learning_rate") for row in rows} - {None}
    left_out = {
        "rate": len(rates) < 2,
        "new_rows": all(row.get("after_new_rows") is None for row in rows),
    }
    return {column: title for column, title in titles.items() if not left_out.get(column)}
