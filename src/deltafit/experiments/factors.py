"""What one setting does: rows that differ in it alone, compared on the same judged rows.

A sweep over rank and α has several rows for each rank, one for each α. Averaged over these, ranks
are compared with more rows' worth of evidence than any two cells of the grid, and no cell has to be
chosen for a rank, which the judged rows would flatter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from deltafit.experiments.arms import Arm
from deltafit.experiments.resampling import BoolArray
from deltafit.experiments.statistics import PairedComparison
from deltafit.experiments.tables import Row
from deltafit.experiments.together import Together


@dataclass(frozen=True, eq=False)
class Tried:
    """An arm with what came of it.

    Attributes:
        arm: what was asked for.
        row: its row of the report.
        correct: which judged rows it got right, ``[seeds, n]``.
    """

    arm: Arm
    row: Row
    correct: BoolArray


@dataclass(frozen=True)
class Level:
    """A value of a setting.

    Attributes:
        value: of the setting.
        members: the rows that have it, one for each combination of the other settings.
        accuracy: their mean.
        to_best: their accuracy minus that of the best value, paired, and corrected for all pairs of
            values; None for the best.
    """

    value: Any
    members: tuple[Tried, ...]
    accuracy: float
    to_best: PairedComparison | None

    def mean(self, key: str) -> float | None:
        """Return the mean of a row's figure over the members; None where one has none."""
        found = [member.row[key] for member in self.members if member.row.get(key) is not None]
        return float(np.mean(found)) if len(found) == len(self.members) else None


@dataclass(frozen=True)
class Factor:
    """A setting with the values that were tried.

    Attributes:
        setting: of a method, such as "rank".
        levels: in rising order, or in that of the recipe.
        over: other settings over which each level is a mean, with their values; none where a level
            is a single row.
        left_out: rows that have the setting and no counterpart with the other values.
    """

    setting: str
    levels: tuple[Level, ...]
    over: Mapping[str, tuple[Any, ...]]
    left_out: int

    @property
    def best(self) -> Level:
        """The value that the others are compared with."""
        return next(level for level in self.levels if level.to_best is None)


def factors(tried: Sequence[Tried], setting: str) -> list[Factor]:
    """Return what is known of a setting, method by method; nothing where it has one value.

    Rows are counterparts if they differ in the setting alone. What a search chose for each of them
    by itself may differ too, and so may what follows from the setting: the size of rows under one
    budget that differ in their matrices; α of ranks that keep α/r. Of values that were not tried
    with the same others, the largest set that was is taken.

    Args:
        tried: what was judged.
        setting: the name of a method's field.
    """
    having = [
        each for each in tried if setting in _settings_of(each) and setting not in each.arm.searched
    ]
    found = []
    for kind in dict.fromkeys(type(each.arm.method) for each in having):
        of_kind = [each for each in having if type(each.arm.method) is kind]
        whole = [each for each in of_kind if not each.row.get("failed_seeds")]
        for others_of in _COUNTERPARTS.get(setting, (_settings_of,)):
            if blocks := _blocks(whole, setting, others_of):
                found.append(factor_of(setting, blocks, len(of_kind)))
                break
    return found


_Settings = dict[str, Any]
_Block = dict[Any, Tried]


def _settings_of(tried: Tried) -> _Settings:
    return _values(tried.arm.method)


def _values(settings: Any) -> _Settings:
    return {field.name: getattr(settings, field.name) for field in fields(settings)}


def _scaled(tried: Tried) -> _Settings:
    """Return a method's settings with its scaling s in place of α."""
    method = tried.arm.method
    return _settings_of(tried) | {"alpha": getattr(method, "factor", None)}


def _sized(tried: Tried) -> _Settings:
    """Return a method's settings without that of its size."""
    size = tried.arm.method.size_setting
    return {name: value for name, value in _settings_of(tried).items() if name != size}


_COUNTERPARTS = {"rank": (_settings_of, _scaled), "target_modules": (_sized, _settings_of)}


def _blocks(
    tried: Iterable[Tried], setting: str, others_of: Callable[[Tried], _Settings]
) -> list[_Block]:
    """Return sets of counterparts, all with the same values: the most rows that there are so."""
    blocks: dict[str, _Block] = {}
    for each in tried:
        left_out = {setting, "seed", *each.arm.searched}
        key = repr(
            [
                sorted((name, value) for name, value in settings.items() if name not in left_out)
                for settings in (others_of(each), _values(each.arm.settings))
            ]
        )
        value, block = _settings_of(each)[setting], blocks.setdefault(key, {})
        if value in block:  # more than the setting differs
            return []
        block[value] = each
    alike: dict[frozenset[Any], list[_Block]] = {}
    for block in blocks.values():
        if len(block) > 1:
            alike.setdefault(frozenset(block), []).append(block)
    return max(alike.values(), key=lambda same: len(same) * len(same[0]), default=[])


def factor_of(setting: str, blocks: Sequence[Mapping[Any, Tried]], count: int) -> Factor:
    """Compare values of a setting: each, the mean over blocks, with the best of them.

    Args:
        setting: what it is called.
        blocks: value → row, the same values in each; at least one block and two values.
        count: how many rows have the setting, also where they are in no block.
    """
    values = list(blocks[0])
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    members = [tuple(block[value] for block in blocks) for value in values]
    correct = [np.stack([each.correct for each in level]) for level in members]
    accuracies = [float(right.mean()) for right in correct]
    best = int(np.argmax(accuracies))
    together = Together(correct)
    levels = tuple(
        Level(
            value,
            members[index],
            accuracies[index],
            None if index == best else together.compare(index, best),
        )
        for index, value in enumerate(values)
    )
    return Factor(setting, levels, _varied(members[0]), count - len(values) * len(blocks))


def _varied(members: Sequence[Tried]) -> dict[str, tuple[Any, ...]]:
    """Return the settings in which rows differ, with their values."""
    settings = [_values(each.arm.settings) | _settings_of(each) for each in members]
    values = {name: dict.fromkeys(one[name] for one in settings) for name in settings[0]}
    return {name: tuple(found) for name, found in values.items() if len(found) > 1}
