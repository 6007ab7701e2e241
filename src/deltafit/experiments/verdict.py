"""The verdict of a comparison: in a few sentences, what to ship and what was not decided."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deltafit.experiments.statistics import smallest_visible_difference
from deltafit.experiments.tables import (
    PERCENT_METRICS,
    Row,
    format_bytes,
    format_count,
    format_metric,
    format_points,
    is_best,
    outcome_of,
    with_outcome,
)
from deltafit.experiments.words import named

MATTERS = 0.02  # of accuracy: a loss that a tie must not hide


def verdict(rows: Sequence[Row]) -> str:
    """Say in three sentences what to ship and why, how sure that is, and what baselines do.

    A method is tied with the best if it cannot be told apart from it looked at alone: if the 95 %
    interval of their difference includes 0. Of those tied the cheapest to keep is advised: a
    baseline (the quickest to fit) before an adapter, then the fewest trained parameters; of equal
    ones the better on validation rows, then the first. Bytes and seconds have no say in these: they
    differ by how busy the machine was, say. Where a loss of more than two points to the best cannot
    be excluded, that is said with what to ship if it matters. What is worse looked at alone, and
    not after correction for all pairs of rows, is undecided: not shipped. That anything beats the
    majority class, which knows nothing of the text, is a claim of its own that has to stand
    correction: otherwise nothing is decided.
    """
    if not rows:
        return "Nothing was compared."
    judged = [row for row in rows if not row.get("failure")]
    sentences = _of_judged(judged) if judged else ["There is nothing to judge: every run failed."]
    sentences += [_without_seeds(row) for row in judged if row.get("failed_seeds")]
    return " ".join([*sentences, *_failed([row for row in rows if row.get("failure")])])


def advised(rows: Sequence[Row]) -> Row | None:
    """Return the row that the verdict advises to ship; None where nothing is decided."""
    judged = [row for row in rows if not row.get("failure")]
    if not judged:
        return None
    standing = _standing(judged)
    if standing.majority is not None and len(judged) > 1:
        return None
    return min([standing.best, *standing.tied], key=_cost)


class _Standing(NamedTuple):
    """How rows stand to the best one.

    Attributes:
        best: the row that the others are compared with.
        tied: those within noise of it, the cheapest first.
        undecided: those neither within noise of it nor worse beyond noise, the cheapest first.
        majority: the majority class, if it is the best or nothing is beyond noise better.
    """

    best: Row
    tied: list[Row]
    undecided: list[Row]
    majority: Row | None


def _standing(rows: Sequence[Row]) -> _Standing:
    best = next((row for row in rows if is_best(row)), rows[0])
    others = sorted((row for row in rows if row is not best), key=_cost)
    tied, undecided = (
        [row for row in others if outcome_of(row["difference"]) == outcome]
        for outcome in ("within noise", "undecided")
    )
    unbeaten = (row for row in [best, *tied, *undecided] if row["result_name"] == "majority")
    return _Standing(best, tied, undecided, next(unbeaten, None))


def _of_judged(rows: Sequence[Row]) -> list[str]:
    standing = _standing(rows)
    chosen = advised(rows)
    if chosen is None:
        assert standing.majority is not None
        return _nothing_decided(standing.majority, standing.best, rows)
    return [
        _recommendation(chosen, standing, len(rows)),
        *_how_sure(chosen, standing.best),
        *_against_baselines(chosen, standing.best, rows),
    ]


def _failed(rows: Sequence[Row]) -> list[str]:
    names: dict[str, list[str]] = {}
    for row in rows:
        # Up to the reason and the advice, which stand with the row's remarks.
        what = re.split(r"[:.](?:\s|$)", row["failure"], maxsplit=1)[0]
        names.setdefault(what, []).append(row["name"])
    return [
        f"{named(each)} {what} and {'is' if len(each) == 1 else 'are'} not judged."
        for what, each in names.items()
    ]


def _without_seeds(row: Row) -> str:
    failed, seeds = row["failed_seeds"], row["seeds"] + row["failed_seeds"]
    return f"{row['name']} failed with {failed} of {seeds} seeds, which its figures leave out."


def _nothing_decided(majority: Row, best: Row, rows: Sequence[Row]) -> list[str]:
    """Say that nothing is told from always answering the majority class."""
    others = [row for row in rows if row is not majority]
    if majority is best and all(outcome_of(row["difference"]) == "worse" for row in others):
        return [
            "Ship none of them: always answering the majority class "
            f"({_result(majority)}) is better than every other method beyond noise."
        ]
    count = best["count"]
    if majority is best:
        why = f"nothing got more of them right than the majority class ({_result(majority)})"
    else:
        is_what = (
            "is within noise of"
            if majority["difference"]["within_noise"]
            else "is not beyond noise better than"
        )
        why = (
            f"the best, {best['name']} ({_result(best)}), {is_what} the majority class "
            f"({_result(majority)}, a difference of {format_points(majority['difference'])} points)"
        )
    visible = smallest_visible_difference(count)
    least = (
        "They cannot show any difference at all"
        if visible is None
        else f"They cannot show a difference under {100 * visible:.2g} points at all"
    )
    return [
        f"{_rows(count)} too few to decide: {why}.",
        f"{least}.",
        "Judge on more rows; if the tie stays, nothing was learned.",
    ]


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"


def _cost(row: Row) -> tuple[bool, float, float]:
    if row["kind"] != "run":
        seconds = row.get("seconds")
        return False, 0.0, float("inf") if seconds is None else seconds
    return True, float(row.get("trainable") or 0), -float(row.get("validation") or 0)


def _result(row: Row) -> str:
    name = str(row["metric_name"])
    unit = " %" if name in PERCENT_METRICS else ""
    return f"{format_metric(row.get('after'), name)}{unit} {name.replace('_', ' ')}"


def _facts_of(row: Row) -> str:
    """Return what stands behind the advised name: result, seeds, size."""
    parts = [_result(row)]
    if row["kind"] == "run" and row.get("seeds") == 1:
        parts.append("one seed")
    if row.get("trainable") is not None:
        parts.append(f"{format_count(row['trainable'])} trained parameters")
    if row.get("saved_bytes") is not None:
        parts.append(f"{format_bytes(row['saved_bytes'])} saved")
    return ", ".join(parts)


def _recommendation(chosen: Row, standing: _Standing, count: int) -> str:
    use, best = "Ship" if chosen["kind"] == "run" else "Use", standing.best
    advice = f"{use} {chosen['name']} ({_facts_of(chosen)})"
    if count == 1:
        return f"{advice}: nothing else was compared with it."
    if chosen is not best:
        points = format_points(chosen["difference"])
        return (
            f"{advice}: within noise of the best, {best['name']} ({_result(best)}; the 95 % "
            f"interval of their difference, {points} points, includes 0)"
            f"{_why_it(chosen, [standing.best, *standing.tied])}."
        )
    if standing.tied:
        count = len(standing.tied)
        are = f"{standing.tied[0]['name']} is" if count == 1 else f"{count} others are"
        return (
            f"{advice}: the best and the cheapest of a tie; {are} within noise of it (the 95 % "
            "interval of the difference includes 0)."
        )
    if standing.undecided:
        return f"{advice}: it is the best, and nothing else is within noise of it."
    return f"{advice}: it is better than every other method beyond noise{_corrected(count)}."


def _why_it(chosen: Row, tied: Sequence[Row]) -> str:
    """Return why this one of a tie: ", and it trains the fewest parameters of those tied"."""
    if chosen["kind"] != "run":
        return ", and the cheapest of those tied"
    alike = [row for row in tied if _cost(row)[:2] == _cost(chosen)[:2]]
    if len(alike) == 1:
        return ", and it trains the fewest parameters of those tied"
    known = all(row.get("validation") is not None for row in alike)
    return (
        f", and of the {len(alike)} of those tied that train the fewest parameters it "
        f"{'does best on the validation rows' if known else 'came first'}"
    )


def _corrected(count: int) -> str:
    """Return what "beyond noise" means, of a best row among so many."""
    return f" (p < 0.05, corrected for all pairs of {count} rows)" if count > 2 else " (p < 0.05)"


def alternative(rows: Sequence[Row]) -> Row | None:
    """Return what to ship where the loss that advice may mean matters: the best row.

    None where no loss of more than two points is left open, or nothing is decided.
    """
    chosen = advised(rows)
    if chosen is None or is_best(chosen) or not may_matter(chosen["difference"]):
        return None
    return next((row for row in rows if is_best(row)), None)


def _how_sure(chosen: Row, best: Row) -> list[str]:
    """Say how much worse what is advised may be than the best."""
    if chosen is best:
        return []
    sentence = f"It gets at most {at_most(chosen['difference'])} less than the best"
    if not may_matter(chosen["difference"]):
        return [f"{sentence}."]
    return [f"{sentence}: where that matters, {best['name']} is safer, and more rows would tell."]


def may_matter(comparison: Mapping[str, Any]) -> bool:
    """Say whether a loss of more than two points to the other is not excluded."""
    return bool(-comparison["low"] > MATTERS)


def at_most(comparison: Mapping[str, Any]) -> str:
    """Return "1.5 points (95 %)": how much less than the other cannot be excluded."""
    return f"{max(0.0, -100 * comparison['low']):.1f} points (95 %)"


def _against_baselines(chosen: Row, best: Row, rows: Sequence[Row]) -> list[str]:
    """Say of what is advised, or else of the best run, how it stands to the best cheap baseline."""
    runs = [row for row in rows if row.get("against_baseline")]
    if not runs:
        return []
    spoken_of = next((row for row in (chosen, best) if row["kind"] == "run"), None)
    if any(outcome_of(row["against_baseline"]) == "better" for row in runs):
        return [] if spoken_of is None else [_against_baseline(spoken_of)]
    name = runs[0]["against_baseline"]["name"]
    baseline = next(row for row in rows if row["name"] == name)
    parts = [] if baseline is chosen else [f"{name} reaches {_result(baseline)} without one"]
    if spoken_of is not None:
        compared = spoken_of["against_baseline"]
        points = with_outcome(f"{format_points(compared)} points", compared)
        parts.append(f"{spoken_of['name']} against {name}: {points}")
    said = f": {'; '.join(parts)}" if parts else ""
    return [f"No adapter beats the cheap baselines beyond noise{said}."]


def _against_baseline(row: Row) -> str:
    compared, name = row["against_baseline"], row["name"]
    cheap = f"the best cheap baseline, {compared['name']},"
    said = {
        "better": f"{name} beats {cheap} beyond noise",
        "within noise": f"{name} does not beat {cheap} beyond noise",
        "undecided": f"Whether {name} is better or worse than {cheap} is undecided",
        "worse": f"{name} is worse than {cheap} beyond noise",
    }
    return f"{said[outcome_of(compared)]} ({format_points(compared)} points)."
