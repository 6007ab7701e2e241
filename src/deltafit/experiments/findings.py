"""What the doctor finds: how bad it is, what it is about, and what mends it."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any, Literal, get_args

from deltafit.data import LabelledTexts, Splits
from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe import Recipe
from deltafit.training.config import RunConfig
from deltafit.training.settings import flag_name

Severity = Literal["error", "warning", "note"]

_LISTED = 10
_QUOTED = 60  # characters of a text


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an experiment, or that a person should know of it.

    Attributes:
        severity: an error stops a run before it begins; a warning is about what makes its result
            worse, or look better than it is; a note is about what is worth knowing.
        subject: what it is about, in a word or two.
        sentence: what was found.
        remedy: what mends it: flags or a command, each to be pasted as it stands, with "or" between
            them; or the rows that only their owner can mend.
        rows: rows of the recipe or of the data that it is about; long lists are cut, and say so.
    """

    severity: Severity
    subject: str
    sentence: str
    remedy: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """What the doctor looks at, the model apart.

    Attributes:
        recipe: the experiment.
        arms: its rows.
        configs: a run of each, of the first seed.
        entries: the number of the recipe's entry that each row comes from.
        splits: the texts.
        from_flags: whether it was asked for by the flags of a command, such as ``deltafit train``,
            and is mended by those, and not by ``--set``.
    """

    recipe: Recipe
    arms: tuple[Arm, ...]
    configs: tuple[RunConfig, ...]
    entries: tuple[int, ...]
    splits: Splits
    from_flags: bool = False

    def change(self, key: str, value: str) -> str:
        """Return the flag that gives a key of the recipe another value.

        Args:
            key: such as ``"data.validation"``.
            value: as YAML.
        """
        if not self.from_flags:
            return f"--set {quote(f'{key}={value}')}"
        flag = flag_name(key.rpartition(".")[2])
        return flag if value == "true" else f"{flag} {'none' if value == 'null' else value}"

    def asked_method(self, row: int) -> str:
        """Return where a row's method is asked for."""
        return "--method" if self.from_flags else f"runs.{self.entries[row]}.method"

    def method(self, row: int, **settings: Any) -> str:
        """Return the flags that give a row's method other settings.

        Args:
            row: its number.
            settings: those of the method.
        """
        method = replace(self.arms[row].method, **settings)
        if self.from_flags:
            return f"--method {quote(str(method))}"
        number = self.entries[row]
        grid = self.recipe.runs[number].grid
        flags = [
            self.change(f"runs.{number}.grid.{name}", f"[{json.dumps(value)}]")
            for name, value in settings.items()
            if name in grid
        ]
        if len(flags) < len(settings):
            flags.append(self.change(f"runs.{number}.method", str(method)))
        return " ".join(flags)

    def searched(self, row: int) -> set[str]:
        """Return the names of settings that a search may choose for a row."""
        search = self.recipe.search
        own = self.recipe.runs[self.entries[row]].space
        return {*own, *(search.space if search is not None else ())}

    def flag(self, row: int, setting: str, value: object, *, own: bool = False) -> str:
        """Return the flag that gives a row another value of a hyperparameter.

        Args:
            row: its number.
            setting: the hyperparameter.
            value: as YAML.
            own: whether other entries are to keep theirs.
        """
        if self.from_flags:
            # One flag goes for all methods; its "none" is what suits each.
            shared = own and len(self.arms) > 1
            return self.change(setting, "none" if shared else str(value))
        number = self.entries[row]
        entry = self.recipe.runs[number]
        if setting in entry.grid:
            return self.change(f"runs.{number}.grid.{setting}", f"[{value}]")
        if setting in entry.settings or (own and len(self.recipe.runs) > 1):
            return self.change(f"runs.{number}.settings.{setting}", str(value))
        return self.change(f"settings.{setting}", str(value))


Check = Callable[[Case], Iterator[Finding]]


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings, the worst first; those that are equally bad keep their order."""
    order = get_args(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def listed(rows: Sequence[str]) -> tuple[str, ...]:
    """Return the first rows, and how many more there are."""
    more = len(rows) - _LISTED
    return (*rows[:_LISTED], f"and {more:,} more") if more > 0 else tuple(rows)


def quoted(part: LabelledTexts, index: int) -> str:
    """Return where a text stands (the file without its folder), how it begins, and its label."""
    text = " ".join(part.texts[index].split())
    short = text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"
    label = part.label_names[part.labels[index]]
    return f"{_short_place(part, index)}: {short!r} is {label!r}"


def _short_place(part: LabelledTexts, index: int) -> str:
    if part.files is not None:
        return part.own_file(index)
    line = "" if part.lines is None else f" (line {part.lines[index]})"
    return f"{part.source.rpartition('/')[2]}, row {part.rows[index]}{line}"


def rows_of(part: LabelledTexts, indices: Sequence[int]) -> str:
    """Return which rows those are, and of which file, for whoever has to mend them there."""
    more = f" and {len(indices) - _LISTED:,} more" if len(indices) > _LISTED else ""
    if part.files is not None:
        files = ", ".join(part.own_file(index) for index in indices[:_LISTED])
        return f"{files}{more} in {part.source}"
    first = ", ".join(str(part.rows[index]) for index in indices[:_LISTED])
    return f"row{'' if len(indices) == 1 else 's'} {first}{more} of {part.source}"


def counted(count: int, one: str, ending: str = "s") -> str:
    """Return "1 warning" or "3 warnings"."""
    return f"{count:,} {one}{'' if count == 1 else ending}"
