"""The command line: one file a command; each parses, calls and prints, and has no logic."""

import sys
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from deltafit.cli.combine import combine
from deltafit.cli.compare import compare
from deltafit.cli.doctor import doctor
from deltafit.cli.estimate import estimate
from deltafit.cli.evaluate import evaluate
from deltafit.cli.extract import extract
from deltafit.cli.inspect import inspect
from deltafit.cli.merge import merge
from deltafit.cli.plan import plan
from deltafit.cli.predict import predict
from deltafit.cli.ranks import ranks
from deltafit.cli.run import run
from deltafit.cli.running import explained
from deltafit.cli.stopping import stop_when_terminated
from deltafit.cli.train import train
from deltafit.cli.truncate import truncate
from deltafit.cli.verify import verify


class _PlainHelp:
    """``--help`` without the name of a value, as flags have none."""

    def get_help_option(self, context: Any) -> Any:
        option = super().get_help_option(context)  # type: ignore[misc]  # of the class beside it
        option.metavar = ""
        return option


class _Command(_PlainHelp, TyperCommand):
    pass


class _Commands(_PlainHelp, TyperGroup):
    """The commands; what goes wrong before one begins its work is explained as well."""

    def make_context(self, *words: Any, **named: Any) -> Any:
        with explained():
            return super().make_context(*words, **named)

    def invoke(self, context: Any) -> Any:
        with explained():
            return super().invoke(context)


app = typer.Typer(
    name="deltafit",
    cls=_Commands,
    help="Fine-tune pretrained transformers with low-rank adapters, and see what it costs and "
    "gives. Every command has an example in its --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _command in (
    *(train, compare, run, doctor, estimate, plan, evaluate, predict, inspect, merge, verify),
    *(ranks, truncate, combine, extract),
):
    app.command(cls=_Command)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"deltafit {version('deltafit')}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, metavar="", help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal or pipe that knows no "×" or "é" gets an escape instead of a traceback.
            stream.reconfigure(errors="backslashreplace")
    stop_when_terminated()
    app()
