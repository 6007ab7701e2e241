"""Flags made from frozen dataclasses, so that no setting is described twice.

A command decorated with ``takes(Settings)`` gets one flag for every field of ``Settings``, with the
field's type, default and the sentence its class docstring has for it, and is called with an
instance of it.
"""

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from deltafit.cli.running import explained

Result = TypeVar("Result")
# Where a flag's usual name is not the field's.
_NAMES = {
    "learning_rate": "--lr",
    "head_learning_rate": "--head-lr",
    # Without a name of its own for "off", which is what leaving it out means.
    "gradient_checkpointing": "--gradient-checkpointing",
    "balance": "--balance",
}


def takes(**settings: type[Any]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command the flags of several dataclasses.

    Args:
        settings: parameter name → dataclass; the command gets an instance under that name.
    """

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(command)
        def run(**arguments: Any) -> Result:
            with explained():  # a value that the dataclass refuses
                made = {
                    name: kind(**{f.name: arguments.pop(f.name) for f in fields(kind)})
                    for name, kind in settings.items()
                }
            return command(**arguments, **made)

        own = [p for n, p in inspect.signature(command).parameters.items() if n not in settings]
        flags = [flag for kind in settings.values() for flag in _flags(kind)]
        parameters = [*own, *flags]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _flags(kind: type[Any]) -> list[inspect.Parameter]:
    hints, help_texts = typing.get_type_hints(kind), attribute_help(kind)
    flags = []
    for field in fields(kind):
        name = _NAMES.get(field.name, "--" + field.name.replace("_", "-"))
        option = typer.Option(name, help=_capital(help_texts[field.name]))
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        flags.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[_plain(hints[field.name]), option],
            )
        )
    return flags


def _plain(hint: Any) -> Any:
    """Return the type as the command line reads it; the dataclass checks choices itself."""
    return str if typing.get_origin(hint) is typing.Literal else hint


def attribute_help(kind: type[Any]) -> dict[str, str]:
    """Return what a dataclass's docstring says of each attribute, as plain text."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n(?= {4}\w+: )", "\n" + section.rstrip())
    result = {}
    for entry in filter(None, (e.strip() for e in entries)):
        name, _, text = entry.partition(": ")
        result[name] = re.sub(r"\s+", " ", text).replace("``", "")
    return result


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
