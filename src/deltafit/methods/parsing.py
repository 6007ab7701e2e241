"""Methods from text: the command line's ``lora:rank=8`` and the JSON of result files."""

import re
import types
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deltafit.errors import UsageError
from deltafit.methods.base import Method

Methods = Mapping[str, type[Method]]


def parse_method(text: str, methods: Methods) -> Method:
    """Return the method described as ``name`` or ``name:setting=value,setting=value``.

    A list inside a value is joined with ``+`` or ``,`` (``target_modules=query+value``); a
    pattern's entries are written ``name>number`` (``rank_pattern=query>4+value>8``); a regular
    expression begins with ``re:``.
    """
    name, _, settings = text.strip().partition(":")
    method = _known(name, methods)
    given: dict[str, Any] = {}
    # Only a comma before the next setting separates: others belong to a list or an expression.
    for part in filter(None, re.split(r",(?=\s*[\w-]+\s*=)|,\s*$", settings)):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(
                f"In {text!r}, {part!r} is not a setting. Write it as setting=value, such as "
                f"{name}:{next(iter(_settings(method)), 'setting')}=value."
            )
        if key in given:
            raise UsageError(f"In {text!r}, {key} is set twice.")
        given[key] = _read(value.strip(), _setting(method, key), f"{name}:{key}")
    return method(**given)


def method_from_dict(content: Mapping[str, Any], methods: Methods) -> Method:
    """Return the method that ``Method.to_dict`` described."""
    settings = dict(content)
    method = _known(str(settings.pop("method", "")), methods)
    for key in settings:
        _setting(method, key)
    return method(**settings)


def _known(name: str, methods: Methods) -> type[Method]:
    if name in methods:
        return methods[name]
    close = get_close_matches(name, methods, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"There is no method {name!r}; there are {', '.join(methods)}.{hint}")


def _settings(method: type[Method]) -> dict[str, Any]:
    hints = get_type_hints(method)
    return {field.name: hints[field.name] for field in fields(method)}


def _setting(method: type[Method], key: str) -> Any:
    settings = _settings(method)
    if key in settings:
        return settings[key]
    close = get_close_matches(key, settings, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = ", ".join(settings) if settings else "none"
    raise UsageError(
        f"The method {method.command_line_name!r} has no setting {key!r}; it has {known}.{hint}"
    )


def _read(text: str, kind: Any, where: str) -> Any:
    """Read ``text`` as a value of the annotated type ``kind``."""
    if get_origin(kind) in (Union, types.UnionType):
        return _read_union(text, kind, where)
    if get_origin(kind) is Literal or kind is str:
        return text  # the method itself refuses a choice it does not have
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        parts = filter(None, re.split(r"[+,]", text))
        return tuple(_read_item(part.strip(), item, where) for part in parts)
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        hint = " Further settings are written setting=value." if "," in text else ""
        raise UsageError(f"{where} takes a number; got {text!r}.{hint}") from None


def _read_union(text: str, kind: Any, where: str) -> Any:
    if text.lower() == "none":
        return None
    options = [option for option in get_args(kind) if option is not type(None)]
    if str in options and (text.lower() == "all-linear" or text.startswith("re:")):
        return text
    return _read(text, next(option for option in options if option is not str), where)


def _read_item(text: str, kind: Any, where: str) -> Any:
    if get_origin(kind) is not tuple:
        return _read(text, kind, where)
    name, arrow, value = text.partition(">")
    if not arrow:
        raise UsageError(f"{where} takes entries written name>number; got {text!r}.")
    return name, _read(value, get_args(kind)[1], where)
