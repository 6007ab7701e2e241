"""A comparison in words: how methods stand to full fine-tuning, and what more cost has brought.

Every sentence follows from the rows by a rule, and none calls a difference within noise a win.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deltafit.experiments.tables import Row, format_points, share_of
from deltafit.experiments.verdict import advised, listing

FULL = "full fine-tuning"
NAMED = 4  # methods that a sentence names before it counts the rest
MATTERS = 0.02  # of accuracy: a loss that a tie must not hide
LONGER = 1.1  # times; a smaller difference of two wall times is none


def headline(rows: Sequence[Row]) -> str:
    """Return "Ship lora:rank=8", "Use TF-IDF + linear SVM" or that nothing is decided."""
    chosen = advised(rows)
    if chosen is None:
        return "Nothing is decided" if rows else "Nothing was compared"
    return f"{'Ship' if chosen['kind'] == 'run' else 'Use'} {chosen['name']}"


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the sentences that stand beside the verdict; each says how sure it is."""
    runs = [row for row in rows if row["kind"] == "run" and not row.get("failure")]
    return [*_against_full(runs), *_against_advised(runs), *_rates(runs), *_seeds(runs)]


def _against_full(runs: Sequence[Row]) -> list[str]:
    compared = [row for row in runs if row.get("against_full")]
    tied = [row for row in compared if row["against_full"]["within_noise"]]
    sentences = []
    if tied:
        full = next(row for row in runs if row["name"] == tied[0]["against_full"]["name"])
        advised_name = (tied[0].get("against_advised") or {}).get("name")
        tied.sort(key=lambda row: (row["name"] != advised_name, row["trainable"] or 0))
        first, *others = tied
        sentences.append(
            f"{first['name']} is within noise of {FULL} ({_points(first['against_full'])})"
            f"{_at_what_cost(first, full)}{_not_excluded(first['against_full'])}."
        )
        if others:
            are = "So is" if len(others) == 1 else "So are"
            sentences.append(f"{are} {_named([row['name'] for row in others])}.")
    for word, sign in (("better", 1), ("worse", -1)):
        apart = [
            f"{row['name']} ({_points(row['against_full'])})"
            for row in compared
            if row not in tied and row["against_full"]["difference"] * sign > 0
        ]
        if apart:
            are = "is" if len(apart) == 1 else "are"
            sentences.append(f"{_named(apart)} {are} {word} than {FULL} beyond noise.")
    return sentences


def _not_excluded(comparison: Mapping[str, Any]) -> str:
    """Say how much worse a method of a tie may be, where that would matter."""
    loss = -comparison["low"]
    if loss <= MATTERS:
        return ""
    return f"; with so few rows and seeds, {100 * loss:.1f} points less cannot be excluded"


def _at_what_cost(row: Row, full: Row) -> str:
    """Return " at 0.45 % of the parameters and 0.6× its time", as far as known and less."""
    parts, share = [], share_of(row)
    if share is not None and share < 1:
        parts.append(f"{100 * share:.2g} % of the parameters")
    if _longer(full, row):
        parts.append(f"{_times(row, full)} its time")
    return f" at {' and '.join(parts)}" if parts else ""


def _against_advised(runs: Sequence[Row]) -> list[str]:
    """Say of what takes longer than the advised method whether that has brought anything."""
    compared = [row for row in runs if row.get("against_advised")]
    name = compared[0]["against_advised"]["name"] if compared else None
    chosen = next((row for row in runs if row["name"] == name), None)
    if chosen is None:  # a baseline is advised: the verdict says what runs are worth
        return []
    longer = [row for row in compared if _longer(row, chosen)]
    nothing, better, worse = [], [], []
    for row in longer:
        found = row["against_advised"]
        if found["within_noise"]:
            nothing.append(f"{row['name']} ({_times(row, chosen)})")
        elif found["difference"] > 0:
            better.append(row)
        else:
            worse.append(f"{row['name']} ({_times(row, chosen)})")
    sentences = [
        f"{row['name']} is better than {name} beyond noise "
        f"({_points(row['against_advised'])}), for {_times(row, chosen)} its time."
        for row in better
    ]
    for names, what in (
        (nothing, "for nothing that these rows show"),
        (worse, "and did worse beyond noise"),
    ):
        if names:
            took = "costs" if len(names) == 1 else "cost"
            verb = took if names is nothing else "took"
            sentences.append(f"{_named(names)} {verb} more time than {name} {what}.")
    return sentences


def _rates(runs: Sequence[Row]) -> list[str]:
    """Say of a comparison of methods whether each had a learning rate of its own."""
    known = [row for row in runs if row.get("learning_rate")]
    if len({row["result_name"] for row in known}) < 2:
        return []
    tuned = [row for row in known if "learning_rate" in (row.get("searched") or ())]
    others = [row["name"] for row in known if row not in tuned]
    rates = {row["learning_rate"] for row in known}
    if tuned and others:
        were = "was" if len(others) == 1 else "were"
        return [
            f"The learning rates of {_named([row['name'] for row in tuned])} were tuned on "
            f"validation rows; {_named(others)} {were} not tuned, and may do better at others."
        ]
    if tuned:
        counts = sorted({row["trials"] for row in tuned})
        span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        return [
            f"Every method was trained at a learning rate of its own, the best of {span} trials on "
            "validation rows."
        ]
    what = "rates that were not tuned on these texts (their defaults, or the ones asked for)"
    if len(rates) == 1:
        what = f"the same learning rate, {rates.pop():g}"
    return [
        f"All methods were trained at {what}. Each may do better at another: a recipe's search "
        "tunes it for each within the same budget."
    ]


def _seeds(runs: Sequence[Row]) -> list[str]:
    counts = {row.get("seeds") or 1 for row in runs}
    if not counts:
        return []
    if counts == {1}:
        return [
            "Each method was trained once: how much training again would change is not known, and "
            "not in the intervals. More seeds tell, such as --seeds 0,1,2."
        ]
    span = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(counts.pop())
    return [f"Figures are means over {span} seeds, and their intervals hold what seeds change."]


def _points(comparison: Mapping[str, Any]) -> str:
    """Return "+0.4 [−0.3, +1.1] points"; with the p-value where the interval would mislead."""
    points = f"{format_points(comparison)} points"
    if comparison["within_noise"] and not comparison["low"] <= 0 <= comparison["high"]:
        points += f"; p = {comparison['adjusted_p_value']:.2f} among all"
    return points


def _longer(row: Row, other: Row) -> bool:
    """Say whether a row took longer: by a tenth, and with every seed where there are several."""
    if not row.get("seconds") or not other.get("seconds"):
        return False
    low, high = row.get("seconds_range"), other.get("seconds_range")
    apart = not (low and high) or low[0] > high[1]
    return bool(row["seconds"] >= LONGER * other["seconds"] and apart)


def _times(row: Row, other: Row) -> str:
    return f"{row['seconds'] / other['seconds']:.2g}×"


def _named(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return listing([*names[:NAMED], f"{rest} more"] if rest > 0 else names)
