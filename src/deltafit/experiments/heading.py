"""What a report says first: its task, and what exactly the method is that it advises."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltafit.experiments.tables import Row
from deltafit.experiments.words import listing
from deltafit.methods import DeltaMethod, Method, method_from_dict
from deltafit.methods.values import changed, write

_SAID_ALWAYS = ("rank", "alpha", "scaling")
_SIGNS = {"alpha": "α"}
_OF_RUN = {"epochs": ("{} epoch", "{} epochs"), "batch_size": ("batches of {}",) * 2}


def title(facts: Mapping[str, Any]) -> str:
    """Return "sms-gpt2-sweep: gpt2 on sms_spam", as far as the facts of a comparison say it."""
    model, data = str(facts.get("model") or ""), (facts.get("data") or {}).get("data")
    # A model's name on the hub has a slash in it, and so has a path.
    names = [Path(model).name if Path(model).is_absolute() else model, Path(data or "").name]
    what = " on ".join(filter(None, names))
    name = str(facts.get("recipe") or "Comparison of methods")
    return f"{name}: {what}" if what else name


def task(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return "300 test rows, 2 classes, one seed": what the rows were judged on, and how often."""
    judged = [row for row in rows if not row.get("failure")]
    labels = (facts.get("data") or {}).get("label_names") or ()
    part = f"{facts['judged_on']} " if facts.get("judged_on") else ""
    counts = sorted({row["count"] for row in judged if row.get("count")})
    parts = [f"{count:,} {part}rows" for count in counts]
    parts += [f"{len(labels)} classes"] if labels else []
    seeds = {row.get("seeds") or 1 for row in judged if row["kind"] == "run"}
    if seeds:
        most = max(seeds)
        parts.append("one seed" if most == 1 else f"{most} seeds")
    return ", ".join(parts)


def what_it_is(row: Row | None, facts: Mapping[str, Any]) -> str | None:
    """Return what a row trains, where, and with which settings; None if its row does not say.

    Such as "lora on query and value: rank 8, α 16, scaling alpha/r; learning rate 5e-4, 3 epochs,
    batches of 16".
    """
    if row is None or not row.get("settings"):
        return None
    method = method_from_dict(row["settings"])
    own = _settings(method)
    where = f" on {matrices(method, row)}" if isinstance(method, DeltaMethod) else ""
    what = f"{method.command_line_name}{where or f' ({method.summary})'}"
    how = [_rates(row)] if row.get("learning_rate") else []
    run = (facts.get("settings") or {}) | (facts.get("settings_by_row") or {}).get(row["name"], {})
    how += [
        (one if run[key] == 1 else more).format(run[key])
        for key, (one, more) in _OF_RUN.items()
        if key in run
    ]
    return "; ".join(filter(None, [f"{what}{': ' if own else ''}{', '.join(own)}", ", ".join(how)]))


def _rates(row: Row) -> str:
    """Return "learning rate 5e-4, of the head 5e-3", or one where they are the same."""
    said, head = f"learning rate {row['learning_rate']:g}", row.get("head_learning_rate")
    return said if head in (None, row["learning_rate"]) else f"{said}, of the head {head:g}"


def where_it_is(row: Row | None) -> str | None:
    """Return where the files of a row lie, seen from the report; None where that is not known."""
    if row is None:
        return None
    if row["kind"] != "run":
        return f"No file is kept of {row['name']}: scikit-learn fits it anew in little time."
    if not row.get("folder"):
        return None
    several = (row.get("seeds") or 1) > 1
    which = ", of the seed that does best on the validation rows" if several else ""
    return f"It is in {row['folder']}, seen from this report{which}."


def _settings(method: Method) -> list[str]:
    shown = {key: getattr(method, key) for key in _SAID_ALWAYS if hasattr(method, key)}
    shown |= changed(method)
    if isinstance(method, DeltaMethod):
        shown = {k: v for k, v in shown.items() if k not in ("target_modules", "layers")}
    return [f"{setting_name(key)} {_value(v)}" for key, v in shown.items()]


def setting_name(name: str) -> str:
    """Return what a sentence calls a setting: "α", "learning rate"."""
    return _SIGNS.get(name, name.replace("_", " "))


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else write(value)


def matrices(method: DeltaMethod, row: Row) -> str:
    """Return which matrices a method adapts: "query and value", "all linear layers of block 5"."""
    targets = method.target_modules
    if targets is None:
        known = row.get("targets")
        words = listing(known) if known else "its default matrices"
    elif isinstance(targets, str):
        words = "all linear layers" if targets.lower() == "all-linear" else targets
    else:
        words = listing(targets)
    return words if method.layers is None else f"{words} of {blocks(method.layers)}"


def blocks(layers: Sequence[int] | None) -> str:
    """Return "blocks 0 and 1", or "all blocks"."""
    if layers is None:
        return "all blocks"
    return f"block{'s' if len(layers) > 1 else ''} {listing([*map(str, layers)])}"
