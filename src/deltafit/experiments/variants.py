"""A recipe changed on the command line: which of its claims still hold, and what it is called."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from deltafit.experiments.recipe import dotted
from deltafit.experiments.yaml_tree import Key

_SAID = ("name", "about", "changes", "published", "track")  # which decide no figure
_DIGITS = 6


def settle(content: dict[str, Any], own: Mapping[str, Any], sets: Mapping[Key, Any]) -> None:
    """Take out of a changed recipe what was said of its own texts and model, and name it anew.

    Published figures, ``about`` and ``changes`` are of the recipe's own texts and model, or its
    twin's, and so is a ``limit`` of training rows, unless the command line gives them itself. What
    was left out and what was changed then stands in ``changes``. A recipe that trains or judges
    otherwise has a name of its own, since its report would replace the other's; the same changes
    always give the same name.

    Args:
        content: the recipe as it was changed, as plain values; it is altered.
        own: the recipe before, with the twin of its model laid over it.
        sets: key → value of each change.
    """
    changed = {
        dotted(key): value
        for key, value in sets.items()
        if key[0] not in _SAID and _differ(content, own, key)
    }
    if not changed:
        return
    left_out = _left_out(content, own, sets)
    if left_out:
        for name in ("about", "published"):
            if name not in {key[0] for key in sets}:
                content.pop(name, None)
    if ("changes",) not in sets:
        said = left_out or [str(own.get("changes") or "").strip()]
        told = ", ".join(f"{key}={_written(value)}" for key, value in sorted(changed.items()))
        content["changes"] = " ".join([*filter(None, said), f"Changed: {told}."])
    if ("name",) not in sets:
        text = json.dumps(changed, sort_keys=True)
        digits = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        content["name"] = f"{own['name']}-{digits}"


def _left_out(
    content: dict[str, Any], own: Mapping[str, Any], sets: Mapping[Key, Any]
) -> list[str]:
    """Say what does not hold for other texts or another model; a limit of rows goes."""
    texts = [key for key in (("data", "data"), ("data", "test_data")) if _differ(content, own, key)]
    other = [*texts, *([("model",)] if _differ(content, own, ("model",)) else [])]
    if not other:
        return []
    pairs = " and ".join(f"{_at(content, key)} instead of {_at(own, key)}" for key in other)
    said = [
        f"With {pairs}: figures that were published for the recipe's own texts and model, and what "
        "it says of these, are left out."
    ]
    limit = _at(own, ("data", "limit"))
    kept = ("data", "limit") in sets or ("data",) in sets
    if ("data", "data") in texts and limit is not None and not kept:
        del content["data"]["limit"]
        said.append(f"Its limit of {limit} training rows does not hold for other texts.")
    return said


def _differ(content: Mapping[str, Any], own: Mapping[str, Any], key: Key) -> bool:
    return bool(_at(content, key) != _at(own, key))


def _at(content: Any, key: Key) -> Any:
    """Return what stands at a key; None if nothing does."""
    for name in key:
        if isinstance(content, list):
            content = content[int(name)] if int(name) < len(content) else None
        elif isinstance(content, Mapping):
            content = content.get(name)
        else:
            return None
    return content


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
