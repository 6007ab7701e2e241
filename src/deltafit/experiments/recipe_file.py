"""A recipe from YAML: read, its twin and the command line's changes laid over it, and checked.

Every fault that is found is told with its file and line, or with the ``--set`` that it came from.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.recipe import (
    Entry,
    Recipe,
    RecipeError,
    arms_of,
    dotted,
    unknown_key,
)
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import spaces_of
from deltafit.experiments.variants import settle
from deltafit.experiments.yaml_tree import Key, Tree, parse_yaml, read_yaml
from deltafit.training.settings import TrainingSettings

_TWINS = "twins"
_STRICT = ConfigDict(extra="forbid", strict=True)
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys with values",
    "dataclass_type": "keys with values",
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all that can be checked without its model and texts.

    Args:
        path: of the YAML file.
        overrides: what ``--set`` gives, such as ``"settings.epochs=1"``; the values are YAML. A
            ``model`` that the recipe has a twin for brings the twin's changes with it, which the
            others go over. See `settle` for what no longer holds then.

    Raises:
        DeltafitError: the file cannot be read or is not YAML.
        UsageError: keys or values are wrong; the sentence lists them all.
    """
    path = Path(path)
    tree = read_yaml(path)
    if not isinstance(tree.content, dict):
        raise UsageError(f"{path} holds no recipe: it takes keys such as name, model and runs.")
    twins = _taken_twins(tree)
    tree.content.setdefault("name", path.stem)
    _data_in_short(tree)
    sets = [_parsed(change) for change in overrides]
    recipe = _recipe(tree)
    _check_rows(recipe, tree)
    for name, twin in twins.items():  # a fault in one shows whoever it is for
        other = copy.deepcopy(tree)
        _lay_over(other, twin, name)
        _recipe(other)
    changes = {key: value.content for key, value in sets}
    model = changes.get(("model",))
    if isinstance(model, str) and model != tree.content["model"] and model in twins:
        _lay_over(tree, twins[model], model)
    own = copy.deepcopy(tree.content)
    for key, value in sets:
        _put(tree, key, value)
    settle(tree.content, own, changes)
    return _recipe(tree) if sets else recipe


def _taken_twins(tree: Tree) -> dict[str, Tree]:
    """Take the twins out of a recipe: model → what it changes."""
    content = tree.content.pop(_TWINS, {})
    place = tree.place((_TWINS,))
    if not isinstance(content, dict):
        raise UsageError(f"{place}: twins takes the name of a model, and below it what it changes.")
    twins = {}
    for name, changes in content.items():
        inside = (_TWINS, name)
        if not isinstance(changes, dict) or not changes.get("changes"):
            raise UsageError(
                f"{tree.place(inside)}: {dotted(inside)} has to say in words what it changes, "
                "under the key 'changes'."
            )
        found = Tree(changes)
        for known, mine in ((tree.places, found.places), (tree.texts, found.texts)):
            mine |= {key[2:]: what for key, what in known.items() if key[:2] == inside}
        twins[name] = found
    return twins


def _lay_over(tree: Tree, twin: Tree, name: str) -> None:
    """Put a twin's values in place of a recipe's: below a mapping key by key, all else whole."""

    def lay(key: Key, content: Any) -> None:
        if isinstance(content, dict) and content and key not in (("published",),):
            for inner, value in content.items():
                lay((*key, inner), value)
            return
        part = Tree(content)
        for known, mine in ((twin.places, part.places), (twin.texts, part.texts)):
            mine |= {at[len(key) :]: what for at, what in known.items() if at[: len(key)] == key}
        tree.put(key, part)

    _data_in_short(twin)
    lay((), twin.content)
    tree.put(("model",), Tree(name, {(): twin.place(())}))
    tree.content["name"] = f"{tree.content['name']}-{name}"


def _data_in_short(tree: Tree) -> None:
    """Let ``data: imdb`` mean ``data: {data: imdb}``."""
    if isinstance(tree.content.get("data"), str):
        place, name = tree.place(("data",)), tree.content["data"]
        tree.put(("data",), Tree({"data": name}, {(): place, ("data",): place}))


def _parsed(change: str) -> tuple[Key, Tree]:
    """Return the key and the value of a ``--set``."""
    name, equals, text = change.partition("=")
    key: Key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise UsageError(
            f"--set takes key=value, such as settings.epochs=1 or model=minilm; got {change!r}."
        )
    try:
        value = parse_yaml(text, f"--set {change}", lines=False)
    except DeltafitError as error:
        raise UsageError(str(error)) from error
    value.places.setdefault((), f"--set {change}")
    # So that other texts are read as the recipe reads its own.
    return (("data", "data") if key == ("data",) and isinstance(value.content, str) else key), value


def _put(tree: Tree, key: Key, value: Tree) -> None:
    try:
        if key[0] == _TWINS:
            raise UsageError("a twin is chosen by its model, and changed in the file.")
        tree.put(key, value)
    except UsageError as error:
        raise UsageError(f"{value.place(())}: {error}") from error


def _recipe(tree: Tree) -> Recipe:
    """Return the recipe that a tree describes.

    Raises:
        UsageError: it describes none.
    """
    problems: list[tuple[Key, str]] = []
    hints, values = get_type_hints(Recipe), {}
    for name in tree.content:
        if name not in hints:
            problems.append(((name,), unknown_key(name, (*hints, _TWINS))))
    for field in fields(Recipe):
        if field.name in tree.content:
            value, faults = _checked(hints[field.name], tree, (field.name,))
            values[field.name] = value
            problems += faults
        elif field.default is MISSING and field.default_factory is MISSING:
            problems.append(((), f"The key {field.name!r} is missing."))
    problems += _faults_of_entries(tree, values.get("runs") or (), values.get("search"))
    if not problems:
        try:
            recipe = Recipe(**values)
            spaces_of(recipe, arms_of(recipe))
        except RecipeError as error:
            problems.append((error.key, error.sentence))
        else:
            return recipe
    raise UsageError("\n".join(_told(tree, *problem) for problem in problems))


def _told(tree: Tree, key: Key, sentence: str) -> str:
    place = tree.place(key)
    return f"{place}: {dotted(key)}: {sentence}" if key else f"{place}: {sentence}"


def _checked(hint: Any, tree: Tree, key: Key) -> tuple[Any, list[tuple[Key, str]]]:
    """Return what stands at a key as a value of an annotated type, or what is wrong with it."""
    content = tree.content
    for name in key:
        content = content[name]
    return _as_type(hint, content, tree, key)


def _as_type(hint: Any, content: Any, tree: Tree, key: Key) -> tuple[Any, list[tuple[Key, str]]]:
    # As the item of a tuple: pydantic takes a configuration for no dataclass that is alone.
    adapter = TypeAdapter(tuple[hint], config=_STRICT)
    content = copy.deepcopy(content)
    try:
        for fault in _faults(adapter, content):
            inside = tuple(fault["loc"][1:])
            if fault["type"] == "string_type" and (*key, *inside) in tree.texts:
                # A number where text is wanted is the text as it is written.
                content = _with(content, inside, tree.texts[(*key, *inside)])
        faults = _faults(adapter, content)
        if faults:
            return None, [_problem(fault, hint, content, key) for fault in faults]
        return adapter.validate_json(json.dumps([content]))[0], []
    except UsageError as error:  # of the dataclass itself; it begins with the field's name
        named = str(error).split()[0]
        inside = (named,) if isinstance(content, dict) and named in content else ()
        return None, [((*key, *inside), str(error))]


def _faults(adapter: TypeAdapter[Any], content: Any) -> list[Any]:
    try:
        # JSON, since strictly a tuple is no list in Python.
        adapter.validate_json(json.dumps([content]))
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _with(content: Any, key: tuple[Any, ...], value: Any) -> Any:
    """Return the content with another value at a key."""
    if not key:
        return value
    content[key[0]] = _with(content[key[0]], key[1:], value)
    return content


def _problem(fault: Any, hint: Any, content: Any, key: Key) -> tuple[Key, str]:
    """Return a fault that pydantic found as a key and a sentence."""
    inside, kind = tuple(fault["loc"][1:]), fault["type"]
    where: Key = (*key, *inside)
    if kind == "unexpected_keyword_argument":
        return where, unknown_key(str(inside[-1]), _fields_at(hint, inside[:-1]))
    if inside and inside[-1] == "[key]":
        known = re.findall("'([^']*)'", fault["ctx"]["expected"])
        return where[:-1], unknown_key(str(inside[-2]), known)
    if kind == "missing":
        return where[:-1], f"The key {inside[-1]!r} is missing."
    got = content
    for name in inside:
        got = got[name]
    expected = _EXPECTED.get(kind)
    if kind == "literal_error":
        expected = f"one of {fault['ctx']['expected'].replace(' or ', ', ')}".replace("'", "")
    return where, f"It takes {expected}; got {got!r}." if expected else f"{fault['msg']}."


def _fields_at(hint: Any, key: tuple[Any, ...]) -> list[str]:
    """Return the keys of the dataclass that stands at a place of a type."""
    for name in key:
        own = get_type_hints(_dataclass_in(hint))
        hint = own.get(name, hint)
    return [field.name for field in fields(_dataclass_in(hint))]


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass of ``tuple[Kind, ...]``, of ``Kind | None``, or of itself."""
    return next(iter(get_args(hint)), hint)


def _faults_of_entries(
    tree: Tree, entries: Sequence[Entry], search: Search | None
) -> Iterator[tuple[Key, str]]:
    """Yield what is wrong with the types of hyperparameters that entries and a search give."""
    hints: dict[str, Any] = get_type_hints(TrainingSettings)
    lists: list[tuple[Key, dict[str, Any]]] = [
        (("search", "space"), search.space if search else {})
    ]
    for index, entry in enumerate(entries):
        run: Key = ("runs", index)
        lists += [((*run, "grid"), entry.grid), ((*run, "space"), entry.space)]
        for name in entry.settings:
            if name in hints:
                yield from _checked(hints[name], tree, (*run, "settings", name))[1]
    for key, settings in lists:
        for name, values in settings.items():
            for number in range(len(values) if isinstance(values, list) else 0):
                if name in hints:
                    yield from _checked(hints[name], tree, (*key, name, number))[1]


def _check_rows(recipe: Recipe, tree: Tree) -> None:
    """Refuse published figures of a row that the recipe has not."""
    names = [arm.name for arm in arms_of(recipe)]
    problems = [
        (("published", "figures", name), unknown_key(name, names))
        for name in (recipe.published.figures if recipe.published else ())
        if name not in names
    ]
    if problems:
        raise UsageError("\n".join(_told(tree, *problem) for problem in problems))
