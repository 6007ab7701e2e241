"""The space of a recipe's search: what each row may be tried with."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe import (
    SETTINGS,
    Recipe,
    RecipeError,
    check_keys,
    entries_of,
    method_of,
    settings_of,
)
from deltafit.methods.values import changed, write
from deltafit.training.config import head_rate_of
from deltafit.training.settings import HeadConfig, TrainingSettings

Key = tuple[str | int, ...]

_DIGITS = 3  # of a tried number: more would tell nothing
_WIDE = 10  # times the low end: a high end from which on equal factors are gone through
_NEAR_END = 0.1  # of a range's length
_ONE = "Give it under the recipe's settings."


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low: the least.
        high: the greatest.
        log: whether equal factors count alike, not equal steps.
        whole: whether they are whole numbers.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def rounded(self, value: float) -> float:
        """Return a number of the range with as many digits as tell something."""
        return value if self.whole else min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def end_near(self, value: float) -> str | None:
        """Return "lower" or "upper" if a value is near that end of the range."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        place = (value - low) / (high - low)
        return "lower" if place < _NEAR_END else "upper" if place > 1 - _NEAR_END else None

    def __str__(self) -> str:
        """Return "1e-05 to 0.01 in equal factors"."""
        return f"{self.low:g} to {self.high:g}{' in equal factors' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """Values of which one is taken."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        """Return "2, 4 or 8"."""
        *others, last = map(_written, self.values)
        return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Space:
    """What one row of a recipe may be tried with.

    Attributes:
        row: as the recipe has it.
        settings: setting → the values that it may take.
        key: of the recipe, that an error about the space names.
        head: that all rows train.
    """

    row: Arm
    settings: Mapping[str, Range | Choices]
    key: Key = ("search", "space")
    head: HeadConfig = field(default_factory=HeadConfig)

    def arm(self, chosen: Mapping[str, Any]) -> Arm:
        """Return the row with settings of the space; what it has already stays as it is written.

        Raises:
            RecipeError: its method or its run cannot have them.
        """
        others = {k: v for k, v in chosen.items() if present(self.row, k) != v}
        own = _own(self.row)
        of_method = {name: value for name, value in others.items() if name in own}
        of_run = {name: value for name, value in others.items() if name not in own}
        method = self.row.method
        if of_method:
            asked = changed(method) | of_method
            method = method_of(method.command_line_name, asked, self.key)
        return replace(
            self.row, method=method, settings=settings_of(self.row.settings, of_run, self.key)
        )

    def start(self) -> dict[str, Any]:
        """Return what the row has of the space as it is written, as far as that lies in it."""
        found: dict[str, Any] = {}
        for name, values in self.settings.items():
            if isinstance(values, Choices):
                same = [value for value in values.values if self.arm({name: value}) == self.row]
            else:
                value = present(self.row, name)
                if value is None and name == "head_learning_rate":
                    value = head_rate_of(self.row.method, self.head, self.row.settings)
                number = isinstance(value, int | float)
                same = [value] if number and values.low <= value <= values.high else []
            if same:
                found[name] = same[0]
        return found

    def extremes(self) -> Iterator[Arm]:
        """Yield the row with each choice, and each end of a range, by itself.

        Raises:
            RecipeError: the row cannot have one of them.
        """
        for name, values in self.settings.items():
            ends = values.values if isinstance(values, Choices) else (values.low, values.high)
            for value in ends:
                yield self.arm({name: value})

    @property
    def sizes(self) -> bool:
        """Whether it has settings of the method, which decide how much is trained."""
        return any(name in _own(self.row) for name in self.settings)

    def __str__(self) -> str:
        """Return "learning_rate 1e-05 to 0.01 in equal factors; rank 2 or 4"."""
        return "; ".join(f"{name} {values}" for name, values in self.settings.items())


def spaces_of(recipe: Recipe, arms: Sequence[Arm]) -> tuple[Space, ...]:
    """Return the space of each row of a recipe, empty where its search has nothing of that row.

    Args:
        recipe: with a search or without.
        arms: its rows, as ``arms_of`` has them or sized to its budget.

    Raises:
        RecipeError: a key of the search's space belongs to no row, there is nothing to search, or
            a row cannot have a value.
    """
    entries = entries_of(recipe)
    shared = recipe.search.space if recipe.search is not None else {}
    known = dict.fromkeys([*(own for arm in arms for own in _own(arm)), *SETTINGS])
    check_keys(shared, [*known], ("search", "space"))
    spaces = tuple(_space(recipe, *row, shared) for row in zip(arms, entries, strict=True))
    for arm, index in zip(arms, entries, strict=True):
        if recipe.search is not None and arm.settings.metric != recipe.settings.metric:
            raise RecipeError(("runs", index), f"A search judges all rows by one metric. {_ONE}")
    if recipe.search is None:
        for index in entries:
            if recipe.runs[index].space:
                key = ("runs", index, "space")
                raise RecipeError(key, "There is no key 'search' that says how to go through it.")
    elif not any(space.settings for space in spaces):
        raise RecipeError(("search", "space"), "It has no setting of any row. Give one.")
    return spaces


def _space(recipe: Recipe, arm: Arm, index: int, shared: Mapping[str, Any]) -> Space:
    entry, known = recipe.runs[index], (*_own(arm), *SETTINGS)
    check_keys(entry.space, known, ("runs", index, "space"))
    asked: dict[str, tuple[Any, Key]] = {
        name: (values, ("search", "space", name))
        for name, values in shared.items()
        if name in known
    }
    asked |= {
        name: (values, ("runs", index, "space", name)) for name, values in entry.space.items()
    }
    settings = {}
    for name, (content, key) in asked.items():
        _check_free(recipe, arm, entry.grid, name, key)
        settings[name] = _values(content, _kind(arm, name), key)
        list(Space(arm, {name: settings[name]}, key[:-1]).extremes())
    return Space(arm, settings, head=recipe.head)


def _check_free(recipe: Recipe, arm: Arm, grid: Mapping[str, Any], name: str, key: Key) -> None:
    """Refuse to search what something else decides."""
    if name in grid:
        raise RecipeError(key, f"The grid of {arm.name!r} goes through it too. Leave one out.")
    if recipe.budget is not None and name in (arm.method.size_setting, "target_modules", "layers"):
        raise RecipeError(
            key, "The recipe's budget decides the size of every method. Leave one of the two out."
        )
    if name == "metric":
        raise RecipeError(key, f"A search judges all trials by one metric. {_ONE}")


def _values(content: Any, kind: type | None, key: Key) -> Range | Choices:
    if isinstance(content, list):
        if len(content) < 2:
            raise RecipeError(key, "It takes at least two values to choose among.")
        if any(value in content[:index] for index, value in enumerate(content)):
            raise RecipeError(key, "A value stands there twice.")
        return Choices(tuple(content))
    if not isinstance(content, Mapping):
        raise RecipeError(
            key,
            "It takes a list of values, such as [2, 4, 8], or a range, such as "
            f"{{low: 1e-5, high: 1e-2}}; got {content!r}.",
        )
    if kind is None:
        raise RecipeError(key, "It is no number, so it has no range. Give a list of values.")
    return _range(content, kind, key)


def _range(content: Mapping[str, Any], kind: type, key: Key) -> Range:
    check_keys(content, ("low", "high", "log"), key)
    ends = []
    for name in ("low", "high"):
        if name not in content:
            raise RecipeError(key, f"The key {name!r} is missing.")
        value, wanted = content[name], (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            what = "a whole number" if kind is int else "a number"
            raise RecipeError((*key, name), f"It takes {what}; got {value!r}.")
        ends.append(value if kind is int else float(value))
    low, high = ends
    if low >= high:
        raise RecipeError(key, f"Its low end, {low:g}, is not below its high end, {high:g}.")
    log = content.get("log", 0 < _WIDE * low <= high)
    if not isinstance(log, bool):
        raise RecipeError((*key, "log"), f"It takes true or false; got {log!r}.")
    if log and low <= 0:
        raise RecipeError((*key, "low"), f"Equal factors begin above 0; got {low:g}.")
    return Range(low, high, log, whole=kind is int)


def _kind(arm: Arm, name: str) -> type | None:
    """Return int or float if a setting is such a number; else None."""
    home = type(arm.method) if name in _own(arm) else TrainingSettings
    hint = get_type_hints(home)[name]
    kinds = get_args(hint) or (hint,)
    return int if int in kinds else float if float in kinds else None


def _own(arm: Arm) -> tuple[str, ...]:
    return tuple(setting.name for setting in fields(arm.method))


def present(arm: Arm, name: str) -> Any:
    """Return what a row has in a setting; of its learning rate what it comes to."""
    if name in _own(arm):
        return getattr(arm.method, name)
    if name == "learning_rate":
        return arm.settings.learning_rate or arm.method.default_learning_rate
    return getattr(arm.settings, name)


def written(chosen: Mapping[str, Any]) -> str:
    """Return settings as people write them: "learning_rate=0.0005, rank=8"."""
    return ", ".join(f"{name}={_written(value)}" for name, value in chosen.items())


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return write(tuple(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
