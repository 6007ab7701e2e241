"""Methods from text: the command line's ``lora:rank=8`` and the JSON of result files."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from deltafit.errors import UsageError
from deltafit.methods.base import Method
from deltafit.methods.values import read, split

Methods = Mapping[str, type[Method]]


def parse_method(text: str, methods: Methods, more: Mapping[str, str]) -> Method:
    """Return the method described as ``name`` or ``name:setting=value,setting=value``.

    A list inside a value is joined with ``+`` or ``,`` (``target_modules=query+value``); a
    pattern's entries are written ``name>number`` (``rank_pattern=query>4+value>8``); a regular
    expression begins with ``re:``. A value may also be a string or list of JSON.

    Args:
        text: the description.
        methods: the methods there are, by name.
        more: further settings' texts, by name.
    """
    name, _, settings = text.strip().partition(":")
    method = _known(name, methods)
    given: dict[str, Any] = {}
    for setting, value in (*split(settings), *more.items()):
        key = setting.replace("-", "_")
        if value is None:
            raise UsageError(
                f"In {text!r}, {setting!r} is not a setting. Write it as setting=value, such as "
                f"{name}:{next(iter(_settings(method)), 'setting')}=value."
            )
        if key in given:
            raise UsageError(f"In {text!r}, {key} is set twice (a flag of its own counts too).")
        given[key] = read(value.strip(), _setting(method, key), f"{name}:{key}")
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
