"""What settings may be: numbers, names of modules, and patterns of them."""

import math
import re
from typing import TypeGuard

from deltafit.errors import UsageError

EXPRESSION = "re:"
"""What a regular expression for whole module names begins with, where names may stand too."""


def check_all(values: object, kind: type, name: str, wanted: str) -> None:
    """Raise a UsageError unless ``values``, of the setting ``name``, is a tuple of ``kind``."""
    if not isinstance(values, tuple) or any(type(value) is not kind for value in values):
        raise UsageError(f"{name} takes a tuple of {wanted}; got {values!r}.")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a setting is a number: a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole(value: object, name: str, least: int = 1) -> None:
    """Raise a UsageError unless the setting ``name`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}; got {value!r}.")


def check_above_zero(value: object, name: str) -> None:
    """Raise a UsageError unless the setting ``name`` is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise UsageError(f"{name} must be a finite number above 0; got {value!r}.")


def check_below_one(value: object, name: str) -> None:
    """Raise a UsageError unless the setting ``name`` is a number from 0 to below 1."""
    if not is_number(value) or not 0 <= value < 1:
        raise UsageError(f"{name} must be at least 0 and below 1; got {value!r}.")


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    """Raise a UsageError unless the setting ``name`` is one of ``choices``."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def check_layers(values: object) -> None:
    """Raise a UsageError unless the setting ``layers`` is None or indices of blocks."""
    check_all(values or (), int, "layers", "block indices such as (0, -1)")


def check_names(values: object, name: str) -> None:
    """Raise a UsageError unless ``values``, of the setting ``name``, are names of modules."""
    check_all(values, str, name, "module names such as ('query', 'value')")


def means(pattern: str, module_name: str) -> bool:
    """Return whether ``pattern`` is an expression for a module's name, or its last segments."""
    if pattern.startswith(EXPRESSION):
        return re.fullmatch(pattern.removeprefix(EXPRESSION), module_name) is not None
    return f".{module_name}".endswith(f".{pattern}")


def check_pattern(values: object, name: str) -> None:
    """Raise a UsageError unless ``values`` are pairs of a module name and something."""
    pairs = isinstance(values, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in values
    )
    if not pairs:
        raise UsageError(
            f"{name} takes a number for each module name, such as {{'query': 4}}; got {values!r}."
        )
