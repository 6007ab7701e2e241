"""A comparison as CSV, for programs and spreadsheets."""

from collections.abc import Sequence
from typing import Any

from deltafit.experiments.forms import csv_text
from deltafit.experiments.tables import Row, gap_of, share_of

_PLAIN_BEFORE_INTERVAL = (
    *("name", "kind", "result_name", "seeds", "failed_seeds"),
    *("learning_rate", "head_learning_rate", "trials", "trainable", "total"),
    *("metric_name", "count", "before", "training", "validation", "after"),
    "after_new_rows",
)
_PLAIN_AFTER_INTERVAL = (
    *("macro_f1", "seconds", "examples_per_second", "peak_memory_bytes", "saved_bytes"),
)
_SPREADS = {
    "macro_f1_interval": "macro_f1",
    "seconds_range": "seconds",
    "peak_memory_range": "peak_memory_bytes",
}


def comparison_csv(rows: Sequence[Row]) -> str:
    """Return the comparison as CSV: plain numbers in seconds, bytes and fractions of one."""
    lines = []
    for row in rows:
        difference = row.get("difference") or {}
        plain = {key: row.get(key) for key in _PLAIN_BEFORE_INTERVAL}
        plain |= {"share": share_of(row), "training_gap": gap_of(row)}
        plain |= _ends(row, "interval", "interval")
        plain |= {key: row.get(key) for key in _PLAIN_AFTER_INTERVAL}
        for key, name in _SPREADS.items():
            plain |= _ends(row, key, name)
        plain |= {
            "difference": difference.get("difference"),
            "difference_low": difference.get("low"),
            "difference_high": difference.get("high"),
            "p_value": difference.get("p_value"),
            "adjusted_p_value": difference.get("adjusted_p_value"),
            "within_noise": difference.get("within_noise"),
            "beyond_noise": difference.get("beyond_noise"),
            "failure": row.get("failure"),
            "notes": " ".join(row.get("notes") or ()),
        }
        lines.append(plain)
    return csv_text(lines)


def _ends(row: Row, key: str, name: str) -> dict[str, Any]:
    low, high = row.get(key) or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
