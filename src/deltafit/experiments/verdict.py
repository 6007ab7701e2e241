"""The verdict of a comparison: in a few sentences, what to ship and what was not decided."""

import re
from collections.abc import Sequence

from deltafit.experiments.statistics import smallest_visible_difference
from deltafit.experiments.tables import (
    PERCENT_METRICS,
    Row,
    format_bytes,
    format_count,
    format_metric,
    format_points,
    is_best,
)


def verdict(rows: Sequence[Row]) -> str:
    """Say in a few sentences what to ship, and what the figures do not decide.

    Methods whose difference to the best is within noise are tied with it; of those tied, the
    cheapest is advised: a baseline before an adapter, then the smallest saved size, then the
    fewest trainable parameters, then the shortest training. The majority class, which knows
    nothing of the text, is never advised: if it is in the tie, nothing is decided.
    """
    if not rows:
        return "Nothing was compared."
    judged = [row for row in rows if not row.get("failure")]
    sentences = _of_judged(judged) if judged else ["There is nothing to judge: every run failed."]
    sentences += [_without_seeds(row) for row in judged if row.get("failed_seeds")]
    return " ".join([*sentences, *(_failed(row) for row in rows if row.get("failure"))])


def advised(rows: Sequence[Row]) -> Row | None:
    """Return the row that the verdict advises to ship; None where nothing is decided."""
    judged = [row for row in rows if not row.get("failure")]
    if not judged:
        return None
    best, tied, majority = _standing(judged)
    return None if majority is not None and len(judged) > 1 else min([best, *tied], key=_cost)


def _standing(rows: Sequence[Row]) -> tuple[Row, list[Row], Row | None]:
    """Return the best row, those tied with it, and the majority class if it is one of them."""
    best = next((row for row in rows if is_best(row)), rows[0])
    tied = [row for row in rows if row is not best and row["difference"]["within_noise"]]
    majority = next((row for row in [best, *tied] if row["result_name"] == "majority"), None)
    return best, tied, majority


def _of_judged(rows: Sequence[Row]) -> list[str]:
    best, tied, majority = _standing(rows)
    chosen = advised(rows)
    if chosen is None:
        assert majority is not None
        return _undecided(majority, best, tied)
    return [_recommendation(chosen, best, tied, len(rows)), *_against_baselines(chosen, best, rows)]


def _failed(row: Row) -> str:
    # Up to the reason and the advice, which stand with the row's remarks.
    what = re.split(r"[:.](?:\s|$)", row["failure"], maxsplit=1)[0]
    return f"{row['name']} {what} and is not judged."


def _without_seeds(row: Row) -> str:
    failed, seeds = row["failed_seeds"], row["seeds"] + row["failed_seeds"]
    return f"{row['name']} failed with {failed} of {seeds} seeds, which its figures leave out."


def _undecided(majority: Row, best: Row, tied: Sequence[Row]) -> list[str]:
    """Say that nothing is told from always answering the majority class."""
    if majority is best and not tied:
        return [
            "Ship none of them: always answering the majority class "
            f"({_result(majority)}) is better than every other method beyond noise."
        ]
    count = best["count"]
    if majority is best:
        why = f"nothing got more of them right than the majority class ({_result(majority)})"
    else:
        why = (
            f"the best, {best['name']} ({_result(best)}), is within noise of the majority class "
            f"({_result(majority)}, a difference of {format_points(majority['difference'])} points)"
        )
    visible = smallest_visible_difference(count)
    least = (
        "They cannot show any difference at all"
        if visible is None
        else f"They cannot show a difference under {100 * visible:.1f} points at all"
    )
    return [
        f"{_rows(count)} too few to decide: {why}.",
        f"{least}.",
        "Judge on more rows; if the tie stays, nothing was learned.",
    ]


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def _cost(row: Row) -> tuple[float, ...]:
    unknown = float("inf")
    amounts = [row.get(key) for key in ("saved_bytes", "trainable", "seconds")]
    return (row["kind"] == "run", *(unknown if amount is None else amount for amount in amounts))


def _result(row: Row) -> str:
    name = str(row["metric_name"])
    unit = " %" if name in PERCENT_METRICS else ""
    return f"{format_metric(row.get('after'), name)}{unit} {name.replace('_', ' ')}"


def _size(row: Row) -> str:
    known = [
        (row.get("trainable"), format_count(row.get("trainable")) + " trained parameters"),
        (row.get("saved_bytes"), format_bytes(row.get("saved_bytes")) + " saved"),
    ]
    parts = [text for amount, text in known if amount is not None]
    return f", {', '.join(parts)}" if parts else ""


def _recommendation(chosen: Row, best: Row, tied: Sequence[Row], count: int) -> str:
    use = "Ship" if chosen["kind"] == "run" else "Use"
    advice = f"{use} {chosen['name']} ({_result(chosen)}{_size(chosen)})"
    if count == 1:
        return f"{advice}: nothing else was compared with it."
    if not tied:
        return f"{advice}: it is better than every other method beyond noise."
    if chosen is best:
        names, are = listing([row["name"] for row in tied]), "is" if len(tied) == 1 else "are"
        return f"{advice}: the best and the cheapest of a tie; {names} {are} within noise of it."
    others = [row["name"] for row in tied if row is not chosen]
    also = f"; {listing(others)} tied as well" if others else ""
    return (
        f"{advice}: within noise of the best, {best['name']} ({_result(best)}), and the cheapest "
        f"of those tied{also}."
    )


def _against_baselines(chosen: Row, best: Row, rows: Sequence[Row]) -> list[str]:
    """Say of what is advised, and of the best, whether it beats the best cheap baseline."""
    runs = [row for row in rows if row.get("against_baseline")]
    if not runs:
        return []
    name = runs[0]["against_baseline"]["name"]
    if not any(_beats_baseline(row) for row in runs):
        baseline = next(row for row in rows if row["name"] == name)
        said = "" if baseline is chosen else f": {name} reaches {_result(baseline)} without one"
        return [f"No adapter beats the cheap baselines beyond noise{said}."]
    spoken_of = [chosen] if chosen is best else [chosen, best]
    return [_against_baseline(row) for row in spoken_of if row["kind"] == "run"]


def _against_baseline(row: Row) -> str:
    compared = row["against_baseline"]
    does = "beats" if _beats_baseline(row) else "does not beat"
    return (
        f"{row['name']} {does} the best cheap baseline, {compared['name']}, beyond noise "
        f"({format_points(compared)} points)."
    )


def _beats_baseline(row: Row) -> bool:
    compared = row["against_baseline"]
    return bool(compared["difference"] > 0 and not compared["within_noise"])


def listing(names: Sequence[str]) -> str:
    """Return "a, b and c"; there is at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
