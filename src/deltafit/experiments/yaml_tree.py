"""YAML read with the place of every key, so that an error can say where it is.

Plain words are read as YAML 1.2's core schema has them: ``5e-4`` is a number, and ``on``, ``off``,
``yes`` and ``no`` are text, which they are not in PyYAML's YAML 1.1.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deltafit.errors import DeltafitError, UsageError

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Makes plain values alone, and reads plain words by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own attribute


for _tag, _words, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_words})$"), list(_first)
    )
_Loader.add_constructor(  # a leading 0 is no octal number there
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)


@dataclass
class Tree:
    """A document as plain values, with what is known of each.

    Attributes:
        content: dictionaries, lists, texts, numbers, booleans and None.
        places: key → where it stands, such as "sweep.yaml, line 3".
        texts: key of a number → how it is written.
    """

    content: Any
    places: dict[Key, str] = field(default_factory=dict)
    texts: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Return where a key stands, or, if it is missing, the nearest around it."""
        while key not in self.places and key:
            key = key[:-1]
        return self.places.get(key, "")

    def put(self, key: Key, other: "Tree") -> None:
        """Set a key, made if absent, to the content of another document.

        Raises:
            UsageError: what is to hold it is no mapping and no list with such a place.
        """
        holder, inside = self.content, _place_in(self.content, key, 0)
        for length in range(1, len(key)):
            if isinstance(holder, dict) and holder.get(inside) is None:
                holder[inside] = {}
            holder, key = holder[inside], (*key[: length - 1], inside, *key[length:])
            inside = _place_in(holder, key, length)
        holder[inside] = other.content
        key = (*key[:-1], inside)
        for known, more in ((self.places, other.places), (self.texts, other.texts)):
            for old in [old for old in known if old[: len(key)] == key]:
                del known[old]
            known |= {(*key, *inner): what for inner, what in more.items()}


def _place_in(holder: Any, key: Key, length: int) -> str | int:
    """Return the name at ``key[length]`` as a mapping or list that stands before it takes it."""
    name, where = key[length], ".".join(map(str, key[:length])) or "the recipe"
    if isinstance(holder, list):
        if not str(name).isdecimal() or int(name) >= len(holder):
            raise UsageError(f"{where} is a list of {len(holder)}, so there is no {name!r} in it.")
        return int(name)
    if not isinstance(holder, dict):
        raise UsageError(f"{where} is {holder!r}, so there is no {name!r} in it.")
    return str(name)


def read_yaml(path: Path) -> Tree:
    """Read a YAML file.

    Raises:
        DeltafitError: it is missing, unreadable, or not YAML; the sentence names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DeltafitError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise DeltafitError(f"Could not read {path}: {error.strerror}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str, *, lines: bool = True) -> Tree:
    """Read a YAML document.

    Args:
        text: the document.
        source: what a place names.
        lines: whether it names the line too.

    Raises:
        DeltafitError: it is not YAML, or a key stands twice or is no text.
    """
    tree = Tree(None)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            tree.content = _Reading(loader, tree, source, lines).read(node, ())
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if lines and mark else source
        raise DeltafitError(f"{place}: not valid YAML ({what}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeltafitError(f"{source}: not valid YAML ({error}).") from error
    return tree


@dataclass
class _Reading:
    """Makes values of nodes, and notes their places in a tree."""

    loader: _Loader
    tree: Tree
    source: str
    lines: bool

    def read(self, node: Any, key: Key, around: tuple[Any, ...] = ()) -> Any:
        """Return the value of a node; ``around`` are those that it lies in."""
        self.tree.places[key] = self._place(node)
        if any(node is other for other in around):
            raise DeltafitError(f"{self._place(node)}: an alias lies in what it stands for.")
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return [self.read(item, (*key, index), (*around, node)) for index, item in items]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, around)
        value = self.loader.construct_object(node)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.tree.texts[key] = node.value
        elif not isinstance(value, str | bool | None):
            kind = type(value).__name__
            raise DeltafitError(f"{self._place(node)}: a value of type {kind} has no use here.")
        return value

    def _mapping(self, node: Any, key: Key, around: tuple[Any, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, value in node.value:
            name = self.loader.construct_object(name_node)
            if not isinstance(name, str):
                raise DeltafitError(
                    f"{self._place(name_node)}: the key {name_node.value!r} is not text. Put it in "
                    "quotes."
                )
            if name in result:
                first = self.tree.places[(*key, name)]
                raise DeltafitError(
                    f"{self._place(name_node)}: the key {name!r} stands there twice; the first is "
                    f"at {first}. Leave one out."
                )
            result[name] = self.read(value, (*key, name), (*around, node))
            self.tree.places[(*key, name)] = self._place(name_node)
        return result

    def _place(self, node: Any) -> str:
        return f"{self.source}, line {node.start_mark.line + 1}" if self.lines else self.source
