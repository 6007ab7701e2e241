"""A setting's value as text, both ways: what the command line takes and ``str(method)`` writes.

A list is joined with ``+``, a pattern's entries are written ``name>number``. What would not be read
back so (a name with a ``+``, an expression that holds ``, name=``) is written as JSON.
"""

import json
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, Literal, Union, get_args, get_origin

from deltafit.errors import UsageError
from deltafit.methods.checks import EXPRESSION

# Only a comma before the next setting separates: others belong to a list or an expression.
_NEXT = re.compile(r",(?=\s*[\w-]+\s*=)|,\s*$")
_WORD = re.compile(r"[\w.-]+")
_JSON = ('"', "[")


def defaults(kind: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that have a default, with it."""
    return {each.name: each.default for each in fields(kind) if each.default is not MISSING}


def changed(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass's instance that do not stand at their default."""
    usual = defaults(settings)
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {
        name: value for name, value in values.items() if name not in usual or value != usual[name]
    }


def write(value: object) -> str:
    """Return the text that ``read`` takes back to ``value``."""
    if isinstance(value, tuple):
        items = [item if isinstance(item, tuple) else (item,) for item in value]
        text = "+".join(">".join(map(str, item)) for item in items)
        plain = all(_WORD.fullmatch(str(word)) for item in items for word in item)
        plain = plain and text.lower() not in ("none", "all-linear")
    else:
        text = str(value)
        plain = text == text.strip() and not _NEXT.search(text)
    return text if plain else json.dumps(value, ensure_ascii=False)


def split(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each setting of ``name=value,name=value``; None for the value of one without ``=``."""
    while text := text.lstrip(", "):
        name, equals, text = text.partition("=")
        text = text.lstrip()
        end = _end_of_json(text)
        if end is None:
            separator = _NEXT.search(text)
            end = separator.start() if separator else len(text)
        yield name.strip(), text[:end].strip() if equals else None
        text = text[end:]


def read(text: str, kind: Any, where: str) -> Any:
    """Return ``text`` as a value of the annotated type ``kind``; ``where`` names it in an error.

    Raises:
        UsageError: it is none. What JSON says, the method itself checks.
    """
    if text.startswith(_JSON):
        return _read_json(text, where)
    if get_origin(kind) in (Union, types.UnionType):
        return _read_union(text, kind, where)
    if get_origin(kind) is Literal or kind is str:
        return text  # the method itself refuses a choice it does not have
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        parts = filter(None, re.split(r"[+,]", text))
        return tuple(_read_item(part.strip(), item, where) for part in parts)
    return _read_bool(text, where) if kind is bool else _read_number(text, where)


def _read_number(text: str, where: str) -> float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        hint = " Further settings are written setting=value." if "," in text else ""
        raise UsageError(f"{where} takes a number; got {text!r}.{hint}") from None


def _read_bool(text: str, where: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UsageError(f"{where} takes true or false; got {text!r}.")
    return text.lower() == "true"


def _end_of_json(text: str) -> int | None:
    """Return where the JSON value ends that ``text`` begins with; None if it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text)[1] if text.startswith(_JSON) else None
    except json.JSONDecodeError:
        return None


def _read_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where}={text} begins as JSON and is none: {error.msg} at position {error.pos}."
        ) from None


def _read_union(text: str, kind: Any, where: str) -> Any:
    if text.lower() == "none":
        return None
    options = [option for option in get_args(kind) if option is not type(None)]
    if str in options and (text.lower() == "all-linear" or text.startswith(EXPRESSION)):
        return text
    return read(text, next(option for option in options if option is not str), where)


def _read_item(text: str, kind: Any, where: str) -> Any:
    if get_origin(kind) is not tuple:
        return read(text, kind, where)
    name, arrow, value = text.partition(">")
    if not arrow:
        raise UsageError(f"{where} takes entries written name>number; got {text!r}.")
    return name, read(value, get_args(kind)[1], where)
