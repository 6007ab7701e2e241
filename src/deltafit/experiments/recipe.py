"""What an experiment asks for, as data: entries with their grids, and the arms that they mean."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import product
from string import Formatter
from typing import Any, Literal

from deltafit.errors import UsageError
from deltafit.experiments.arms import Arm, Experiment, check_distinct, sized
from deltafit.experiments.search import Search
from deltafit.methods import Method, method_with
from deltafit.methods.values import write
from deltafit.training.settings import DataConfig, HeadConfig, Tracker, TrainingSettings

Figure = Literal["accuracy", "macro_f1", "trainable", "minutes"]
SETTINGS = tuple(field.name for field in fields(TrainingSettings) if field.name != "seed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RecipeError(UsageError):
    """A key of a recipe asks for what cannot be.

    Args:
        key: where in the recipe, such as ``("runs", 1, "grid", "rank")``.
        sentence: what is wrong with it.
    """

    def __init__(self, key: tuple[str | int, ...], sentence: str) -> None:
        super().__init__(f"{dotted(key)}: {sentence}")
        self.key, self.sentence = key, sentence


def dotted(key: Sequence[str | int]) -> str:
    """Return a key as people write it: ``runs.1.grid.rank``."""
    return ".".join(map(str, key))


@dataclass(frozen=True)
class Entry:
    """A method of a recipe, or a grid of them.

    Attributes:
        method: its text, such as ``"lora"`` or ``"lora:rank=8"``.
        name: what its rows are called; with a grid, ``{rank}`` in it stands for the rank. By
            default the method's text, and what else tells it from other rows of that method.
        settings: hyperparameters in place of the recipe's.
        grid: settings of the method, or hyperparameters, with the values that each takes; every
            combination is a row. What both have (AdaLoRA's ``warmup``) is the method's.
        space: what a search goes through for these rows in place of the same keys of its own.
    """

    method: str
    name: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """Figures of others, which the report sets beside ours.

    Attributes:
        source: whose they are, and what they were measured on.
        figures: name of a row → its figures.
    """

    source: str
    figures: dict[str, dict[Figure, float]]


@dataclass(frozen=True)
class Recipe:
    """An experiment: one model, the same texts and seeds, and the runs that are compared.

    Attributes:
        name: of the report's folder.
        model: path, catalogue name or hub name.
        data: where the texts come from.
        runs: the methods.
        about: what the experiment is, and its source.
        changes: in which way it is another experiment than its source, in words.
        head: which head all of them train.
        settings: the hyperparameters of all that say no others.
        seeds: each method is trained once a seed.
        budget: about how many parameters each method is to train besides the head.
        published: figures to stand beside ours.
        track: what else gets the runs' numbers.
        search: how each row's settings are chosen; see ``deltafit.experiments.search_space``.

    Raises:
        RecipeError: a value is out of its range.
    """

    name: str
    model: str
    data: DataConfig
    runs: tuple[Entry, ...]
    about: str = ""
    changes: str = ""
    head: HeadConfig = field(default_factory=HeadConfig)
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    seeds: tuple[int, ...] = (0,)
    budget: int | None = None
    published: Published | None = None
    track: tuple[Tracker, ...] = ()
    search: Search | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in RESERVED:
            raise RecipeError(
                ("name",),
                "The name is a folder's, of letters, digits, '-', '_' and '.', and none of "
                f"{', '.join(RESERVED)}; got {self.name!r}.",
            )
        if not self.runs:
            raise RecipeError(("runs",), "There is nothing to run. Give at least one method.")
        if self.budget is not None and self.budget < 1:
            raise RecipeError(("budget",), f"It takes at least 1 parameter; got {self.budget}.")
        if self.settings.seed != TrainingSettings().seed:
            raise RecipeError(("settings", "seed"), "A recipe has its seeds under the key 'seeds'.")
        try:
            check_distinct("seed", self.seeds)
            for seed in self.seeds:
                replace(self.settings, seed=seed)
        except UsageError as error:
            raise RecipeError(("seeds",), str(error)) from error


RESERVED = ("runs", "locks", "baselines")
"""Folders of a store that hold no report."""


def arms_of(recipe: Recipe) -> tuple[Arm, ...]:
    """Return the rows that a recipe means, in its order; without regard to its budget.

    Raises:
        RecipeError: an entry means nothing that can be run, or two rows are the same.
    """
    found = [(key, arm) for index in range(len(recipe.runs)) for key, arm in _arms(recipe, index)]
    found = _told_apart(found)
    names: dict[str, tuple[str | int, ...]] = {}
    runs: dict[tuple[Method, TrainingSettings], Arm] = {}
    for key, arm in found:
        same = runs.setdefault((arm.method, arm.settings), arm)
        if same is not arm:
            raise RecipeError(key, f"It asks for the same run as {same.name!r}. Leave one out.")
        if arm.name in names:
            raise RecipeError(
                key,
                f"Another row is called {arm.name!r} too. Give it another name; that of a grid has "
                "{setting} in it for every setting that it goes through.",
            )
        names[arm.name] = key
    return tuple(arm for _, arm in found)


def entries_of(recipe: Recipe) -> tuple[int, ...]:
    """Return the number of the entry that each row of ``arms_of`` comes from.

    Raises:
        RecipeError: as `arms_of`.
    """
    return tuple(index for index in range(len(recipe.runs)) for _ in _arms(recipe, index))


def experiment_of(recipe: Recipe) -> Experiment:
    """Return the experiment that a recipe describes, its methods sized to the budget.

    Raises:
        DeltafitError: a method does not fit the model (which a budget alone asks for).
        RecipeError: as `arms_of`.
    """
    arms = arms_of(recipe)
    if recipe.budget is not None:
        arms = sized(arms, recipe.budget, recipe.model, recipe.head)
        check_distinct("method", [(arm.method, arm.settings) for arm in arms])
    return Experiment(recipe.model, recipe.data, recipe.head, arms, recipe.seeds)


def _arms(recipe: Recipe, index: int) -> Iterator[tuple[tuple[str | int, ...], Arm]]:
    """Yield the rows of one entry, each with the key that an error about it names."""
    entry, key = recipe.runs[index], ("runs", index)
    check_keys(entry.settings, SETTINGS, (*key, "settings"))
    shared = settings_of(recipe.settings, entry.settings, (*key, "settings"))
    method = method_of(entry.method, {}, (*key, "method"))
    own = tuple(field.name for field in fields(method))
    check_keys(entry.grid, (*own, *SETTINGS), (*key, "grid"))
    for name, values in entry.grid.items():
        if not values:
            raise RecipeError((*key, "grid", name), "It has no value to try. Give a list of some.")
    for combination in product(*entry.grid.values()):
        chosen = dict(zip(entry.grid, combination, strict=True))
        of_method = {name: value for name, value in chosen.items() if name in own}
        of_run = {name: value for name, value in chosen.items() if name not in own}
        where = (*key, "grid") if entry.grid else key
        arm = Arm(
            _name(entry, chosen, (*key, "name")),
            method_of(entry.method, of_method, where),
            settings_of(shared, of_run, where),
        )
        yield key, arm


def method_of(text: str, grid: Mapping[str, Any], key: tuple[str | int, ...]) -> Method:
    """Return the method of a text with settings of a grid; an error names the key of one."""
    try:
        return method_with(text, {name: _written(value) for name, value in grid.items()})
    except UsageError as error:
        raise RecipeError(_narrowed(key, str(error), grid), str(error)) from error


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [[name, number] for name, number in value.items()]
    if isinstance(value, list):
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return write(value)


def settings_of(
    settings: TrainingSettings, changes: Mapping[str, Any], key: tuple[str | int, ...]
) -> TrainingSettings:
    """Return settings with some of them changed; an error names the key of one of these."""
    try:
        return replace(settings, **changes)
    except UsageError as error:
        raise RecipeError(_narrowed(key, str(error), changes), str(error)) from error


def _narrowed(
    key: tuple[str | int, ...], sentence: str, names: Mapping[str, Any]
) -> tuple[str | int, ...]:
    """Return the key of the setting that a sentence begins with, if it is one of ``names``."""
    first = re.match(r"(?:The )?(?:[\w-]+:)?(\w+)", sentence)
    return (*key, first[1]) if first and first[1] in names else key


def check_keys(given: Mapping[str, Any], known: Sequence[str], key: tuple[str | int, ...]) -> None:
    """Raise a RecipeError about the first key that is not known."""
    for name in given:
        if name not in known:
            raise RecipeError((*key, name), unknown_key(name, known))


def unknown_key(name: str, known: Sequence[str]) -> str:
    """Return the sentence about a key that is not known, with the nearest that is."""
    close = get_close_matches(name, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no such key here.{guess} There are {', '.join(known)}."


def _name(entry: Entry, chosen: Mapping[str, Any], key: tuple[str | int, ...]) -> str:
    """Return a row's own name, or an empty text."""
    text = entry.name or ""
    try:
        for _, name, _, _ in Formatter().parse(text):
            if name is not None and name not in chosen:
                known = ", ".join(entry.grid) or "nothing, as there is no grid"
                raise RecipeError(key, f"{{{name}}} stands for nothing; its grid has {known}.")
        return text.format(**chosen)
    except ValueError as error:
        raise RecipeError(key, f"{text!r} is no name: {error}. Braces are written {{{{.") from error


def _told_apart(
    found: Sequence[tuple[tuple[str | int, ...], Arm]],
) -> list[tuple[tuple[str | int, ...], Arm]]:
    """Name the rows that have no name: by their method, and what other rows of it do otherwise."""
    result = []
    for key, arm in found:
        others = [other for _, other in found if other.method == arm.method]
        differing = [
            name
            for name in SETTINGS
            if len({getattr(other.settings, name) for other in others}) > 1
        ]
        words = [f"{name}={getattr(arm.settings, name)}" for name in differing]
        result.append((key, replace(arm, name=arm.name or " ".join([str(arm.method), *words]))))
    return result
