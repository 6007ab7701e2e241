"""A comparison in words: how methods stand to full fine-tuning, and what more cost has brought.

Every sentence follows from the rows by a rule. None calls a difference a win that is not beyond
noise, and none a tie that is not within it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deltafit.experiments.differences import full_reference
from deltafit.experiments.tables import Row, format_points, is_best, outcome_of, share_of
from deltafit.experiments.verdict import advised, alternative, may_matter
from deltafit.experiments.words import named

FULL = "full fine-tuning"
PROBE = "frozen_probe"  # the cheap baseline that a head can start from
ENOUGH_SEEDS = 5  # Student's factor for so many is 1.4 times the normal one, for two 6.5 times
LONGER = 1.1  # times; a smaller difference of two wall times is none


def headline(rows: Sequence[Row]) -> str:
    """Return "Ship lora:rank=8", "Use TF-IDF + linear SVM" or that nothing is decided.

    Where that may cost more than two points it ends in ", or full where up to 3.1 points matter".
    """
    chosen, other = advised(rows), alternative(rows)
    if chosen is None:
        return "Nothing is decided" if rows else "Nothing was compared"
    said = f"{'Ship' if chosen['kind'] == 'run' else 'Use'} {chosen['name']}"
    if other is None:
        return said
    loss = -100 * chosen["difference"]["low"]
    return f"{said}, or {other['name']} where up to {loss:.1f} points matter"


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the sentences that stand beside the verdict; each says how sure it is."""
    runs = [row for row in rows if row["kind"] == "run" and not row.get("failure")]
    return [
        *_against_best(rows),
        *_against_full(runs),
        *_against_advised(runs),
        *_head_start(rows, runs),
        *_conditions(runs),
        *_rates(runs),
        *_seeds(runs),
    ]


def _against_best(rows: Sequence[Row]) -> list[str]:
    """Count how the others stand to the best row."""
    judged = [row for row in rows if not row.get("failure")]
    best = next((row for row in judged if is_best(row)), None)
    by_outcome: dict[str, list[str]] = {}
    for row in judged:
        if not is_best(row):
            by_outcome.setdefault(outcome_of(row["difference"]), []).append(row["name"])
    if best is None or len(judged) < 3:
        return []
    said = []
    for outcome, what in (
        ("within noise", "within noise of it"),
        ("undecided", "undecided: worse looked at alone, not after correction for all pairs"),
    ):
        if names := by_outcome.get(outcome):
            said.append(f"{len(names)} {what} ({named(names)})")
    if names := by_outcome.get("worse"):
        said.append(f"{len(names)} worse beyond noise")
    return [f"Beside the best, {best['name']}: {'; '.join(said)}."]


def _against_full(runs: Sequence[Row]) -> list[str]:
    full = full_reference(runs)
    compared = [row for row in runs if row.get("against_full")]
    if full is None or not compared:
        return []
    several = sum(row["result_name"] == full["result_name"] for row in runs) > 1
    what = f"{full['name']} ({FULL})" if several else FULL
    sentences = [_chosen_by(full)] if several else []
    by_outcome: dict[str, list[Row]] = {}
    for row in compared:
        by_outcome.setdefault(outcome_of(row["against_full"]), []).append(row)
    sentences += _tied_with_full(by_outcome.pop("within noise", []), full, what)
    for outcome in ("better", "worse", "undecided"):
        apart = [
            f"{row['name']} ({_points(row['against_full'])})" for row in by_outcome.get(outcome, ())
        ]
        if apart and outcome == "undecided":
            sentences.append(
                f"Of {named(apart)} it is undecided: different from {what} looked at alone, and "
                "not after correction for all."
            )
        elif apart:
            are = "is" if len(apart) == 1 else "are"
            sentences.append(f"{named(apart)} {are} {outcome} than {what} beyond noise.")
    return sentences


def _chosen_by(full: Row) -> str:
    if full.get("validation") is None:
        return (
            f"{full['name']} stands for {FULL}: there are no validation rows to choose by, and it "
            "does best on the judged ones, which flatters it."
        )
    return f"{full['name']} stands for {FULL}: it does best on the validation rows."


def _tied_with_full(tied: Sequence[Row], full: Row, what: str) -> list[str]:
    if not tied:
        return []
    advised_name = next(
        (row["against_advised"]["name"] for row in tied if row.get("against_advised")), None
    )
    first, *others = sorted(
        tied, key=lambda row: (row["name"] != advised_name, row["trainable"] or 0)
    )
    sentence = (
        f"{first['name']} is within noise of {what} ({_points(first['against_full'])})"
        f"{_at_what_cost(first, full)}{_not_excluded(first['against_full'])}."
    )
    are = "So is" if len(others) == 1 else "So are"
    more = [f"{are} {named([row['name'] for row in others])}."] if others else []
    return [sentence, *more]


def _not_excluded(comparison: Mapping[str, Any]) -> str:
    """Say how much worse a method of a tie may be, where that would matter."""
    if not may_matter(comparison):
        return ""
    loss = -100 * comparison["low"]
    return f"; with so few rows and seeds, {loss:.1f} points less cannot be excluded"


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
    by_outcome: dict[str, list[str]] = {}
    for row in longer:
        outcome, times = outcome_of(row["against_advised"]), _times(row, chosen)
        if outcome == "better":
            points = _points(row["against_advised"])
            said = f"{row['name']} is better than {name} beyond noise ({points}), for {times} its"
        else:
            said = f"{row['name']} ({times})"
        by_outcome.setdefault(outcome, []).append(said)
    sentences = [f"{said} time." for said in by_outcome.get("better", ())]
    for outcome, verbs, what in (
        ("within noise", ("costs", "cost"), "for nothing that these rows show"),
        ("undecided", ("costs", "cost"), "and whether for anything is undecided"),
        ("worse", ("took", "took"), "and did worse beyond noise"),
    ):
        if names := by_outcome.get(outcome):
            verb = verbs[len(names) > 1]
            sentences.append(f"{named(names)} {verb} more time than {name} {what}.")
    return sentences


def _head_start(rows: Sequence[Row], runs: Sequence[Row]) -> list[str]:
    """Say where runs stayed below a cheap baseline that their heads could have begun with."""
    probe = next((row for row in rows if row["result_name"] == PROBE), None)
    if probe is None or not runs or not all(_stayed_below(row, probe) for row in runs):
        return []
    every = "every run" if len(runs) > 1 else runs[0]["name"]
    return [
        f"{probe['name'].capitalize()} is better than {every} beyond noise, and no head began with "
        "it. Begin there, with --set 'head={head: auto, head_start: probe}' for a recipe, or with "
        "--head auto --head-start probe."
    ]


def _stayed_below(run: Row, probe: Row) -> bool:
    compared, before = run.get("against_baseline"), run.get("before")
    if compared is None or compared["name"] != probe["name"] or before is None:
        return False
    return outcome_of(compared) == "worse" and bool(before < probe["interval"][0])


def _conditions(runs: Sequence[Row]) -> list[str]:
    """Say which rows were timed under unlike conditions, so that their times do not compare."""
    names: dict[str, list[str]] = {}
    for row in runs:
        if row.get("conditions"):
            names.setdefault(row["conditions"], []).append(row["name"])
    if len(names) < 2:
        return []
    said = [f"{named(rows)} ({conditions})" for conditions, rows in names.items()]
    return [f"Times compare only within each of these groups: {'; '.join(said)}."]


def _rates(runs: Sequence[Row]) -> list[str]:
    """Say of a comparison whether each row had a learning rate of its own, and a tuned one."""
    known = [row for row in runs if row.get("learning_rate")]
    kinds = {row["result_name"] for row in known}
    if len(known) < 2:
        return []
    tuned = [row for row in known if "learning_rate" in (row.get("searched") or ())]
    others = [row["name"] for row in known if row not in tuned]
    rates = {row["learning_rate"] for row in known}
    if len(kinds) == 1 and len(rates) > 1 and not tuned:
        return []  # one method at several rates: these are what is compared
    if tuned and others:
        were = "was" if len(others) == 1 else "were"
        return [
            f"The learning rates of {named([row['name'] for row in tuned])} were tuned on "
            f"validation rows; {named(others)} {were} not tuned, and may do better at others."
        ]
    if tuned:
        counts = sorted({row["trials"] for row in tuned})
        span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        return [
            f"Every row was trained at a learning rate of its own, the best of {span} trials on "
            "validation rows."
        ]
    what = "rates that were not tuned on these texts (their defaults, or the ones asked for)"
    if len(rates) == 1:
        what = f"the same learning rate, {rates.pop():g}"
    tried = [row["learning_rate"] for row in known]
    span = f"{{low: {min(tried) / 10:.3g}, high: {10 * max(tried):.3g}}}"
    return [
        f"All rows were trained at {what}. Each may do better at another: a recipe's search tunes "
        "it for each within the same budget, as with "
        f"--set 'search={{trials: 8, space: {{learning_rate: {span}}}}}'."
    ]


def _seeds(runs: Sequence[Row]) -> list[str]:
    counts = sorted({row.get("seeds") or 1 for row in runs})
    if not counts:
        return []
    if counts == [1]:
        return [
            "Each method was trained once: how much training again would change is not known, and "
            "not in the intervals. More seeds tell: --seeds 0,1,2,3,4, or seeds in a recipe."
        ]
    span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    sentence = f"Figures are means over {span} seeds, and their intervals hold what seeds change"
    if counts[0] < ENOUGH_SEEDS:
        sentence += ", as far as so few show it: they are wide for that, and more would narrow them"
    if counts[0] == 1:
        sentence += "; those of one seed hold the rows alone"
    return [f"{sentence}."]


def _points(comparison: Mapping[str, Any]) -> str:
    """Return "+0.4 [−0.3, +1.1] points"; with the p-value where the interval would mislead."""
    points = f"{format_points(comparison)} points"
    if outcome_of(comparison) == "undecided":
        points += f"; p = {comparison['adjusted_p_value']:.2f} among all"
    return points


def _longer(row: Row, other: Row) -> bool:
    """Say whether a row took longer: by a tenth, and with every seed where there are several.

    Of rows timed under unlike conditions it is not known.
    """
    if not row.get("seconds") or not other.get("seconds"):
        return False
    if row.get("conditions") != other.get("conditions"):
        return False
    low, high = row.get("seconds_range"), other.get("seconds_range")
    apart = not (low and high) or low[0] > high[1]
    return bool(row["seconds"] >= LONGER * other["seconds"] and apart)


def _times(row: Row, other: Row) -> str:
    return f"{row['seconds'] / other['seconds']:.2g}×"
