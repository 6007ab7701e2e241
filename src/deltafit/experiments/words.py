"""Lists and values as a sentence has them."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMED = 4  # that a sentence names before it counts the rest


def named(names: Sequence[str]) -> str:
    """Return a listing of at most four names, and how many there are besides."""
    rest = len(names) - NAMED
    others = f"{rest} other{'s' if rest > 1 else ''}"
    return listing([*names[:NAMED], others] if rest > 0 else names)


def listing(names: Sequence[str]) -> str:
    """Return "a, b and c"; there is at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def in_words(value: Any) -> Any:
    """Return a JSON value as a person writes it; of a mapping its values, under the same keys."""
    if isinstance(value, Mapping):
        return {key: in_words(each) for key, each in value.items()} or "none"
    if isinstance(value, list | tuple):
        return ", ".join(str(in_words(each)) for each in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
