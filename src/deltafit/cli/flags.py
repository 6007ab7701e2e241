"""Flags made from frozen dataclasses, so that no setting is described twice.

A command decorated with ``takes(Settings)`` gets one flag for every field of ``Settings``, with the
field's type, default and the sentence its class docstring has for it, and is called with an
instance of it.
"""

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from deltafit.cli.running import explained
from deltafit.errors import UsageError
from deltafit.training.settings import flag_name

Parser = Callable[[Any], Any]
Result = TypeVar("Result")


def takes(**settings: type[Any]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command the flags of several dataclasses.

    Args:
        settings: parameter name → dataclass; the command gets an instance under that name.
    """

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(command)
        def run(**arguments: Any) -> Result:
            made = {}
            for name, kind in settings.items():
                values = {field.name: arguments.pop(field.name) for field in fields(kind)}
                with explained(), naming_flags(values):  # of a value that the dataclass refuses
                    made[name] = kind(**values)
            return command(**arguments, **made)

        own = [p for n, p in inspect.signature(command).parameters.items() if n not in settings]
        flags = [flag for kind in settings.values() for flag in _flags(kind)]
        parameters = [*own, *flags]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it from any function
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _flags(kind: type[Any]) -> list[inspect.Parameter]:
    hints, help_texts = typing.get_type_hints(kind), attribute_help(kind)
    flags = []
    for field in fields(kind):
        annotation, parser, metavar = _read_as(field.name, hints[field.name])
        option = typer.Option(
            flag_name(field.name),
            help=_help(help_texts[field.name], hints[field.name]),
            parser=parser,
            metavar=metavar,
        )
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        flags.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[annotation, option],
            )
        )
    return flags


@contextmanager
def naming_flags(settings: Iterable[str]) -> Iterator[None]:
    """Let an error within the block that begins with a setting's name begin with its flag.

    "learning_rate must be …" becomes "--lr must be …", and "lora:rank takes …" "--rank takes …".
    """
    try:
        yield
    except UsageError as error:
        names = "|".join(map(re.escape, settings))
        found = re.match(rf"(?:[\w-]+:)?({names})\b", str(error)) if names else None
        if found is None:
            raise
        raise UsageError(flag_name(found[1]) + str(error)[found.end() :]) from error


def typed(context: typer.Context, *names: str) -> list[str]:
    """Return the flags of those parameters that the person typed, whatever their values."""
    # By its name: which module the source's class is in depends on typer's version.
    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in names}
    return [flag_name(name) for name, source in sources.items() if source == "COMMANDLINE"]


def _read_as(name: str, hint: Any) -> tuple[Any, Parser | None, str]:
    """Return a field's type as the command line has it, its parser, and what help calls it."""
    if hint is bool:
        return hint, None, ""
    number = next((kind for kind in (int, float) if kind in (hint, *typing.get_args(hint))), None)
    if number is None:
        # The dataclass checks choices itself. TEST_DATA is DATA, as both are written alike.
        choice = typing.get_origin(hint) is typing.Literal
        return str if choice else hint, None, name.rpartition("_")[2].upper()
    if hint is number:
        return hint, None, number.__name__.upper()
    return hint, _number_or_none(number), f"{number.__name__.upper()}|none"


def _number_or_none(number: type[int] | type[float]) -> Parser:
    """Return a parser that also knows the word "none", which some defaults can be changed to."""

    def parse(text: Any) -> Any:
        if not isinstance(text, str):
            return text  # a default
        if text.strip().lower() == "none":
            return None
        try:
            return number(text)
        except ValueError:
            wanted = "a whole number" if number is int else "a number"
            raise typer.BadParameter(f"{text!r} is not {wanted}, nor none.") from None

    return parse


def _help(text: str, hint: Any) -> str:
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if any(choice not in text for choice in choices):
        text = f"{text.removesuffix('.')}. One of {', '.join(choices)}."
    # A word that is itself to be typed keeps its case.
    first = re.split(r"\W", text, maxsplit=1)[0]
    return text if first in choices else text[:1].upper() + text[1:]


def attribute_help(kind: type[Any]) -> dict[str, str]:
    """Return what a dataclass's docstring says of each attribute, for the command line.

    Fields that it names are given by their flags, and None as the word to type.
    """
    names = {field.name for field in fields(kind)}
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n(?= {4}\w+: )", "\n" + section.rstrip())
    result = {}
    for entry in filter(None, (e.strip() for e in entries)):
        name, _, text = entry.partition(": ")
        text = re.sub(r"``(\w+)``", lambda m: flag_name(m[1]) if m[1] in names else m[1], text)
        text = re.sub(r"\bNone\b", "none", re.sub(r"\s+", " ", text))
        result[name] = text.replace("``", "")
    return result
