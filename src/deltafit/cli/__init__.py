"""The command line: one file a command; each parses, calls and prints, and has no logic."""

import sys
from io import TextIOWrapper

import typer

from deltafit.cli.compare import compare
from deltafit.cli.evaluate import evaluate
from deltafit.cli.inspect import inspect
from deltafit.cli.merge import merge
from deltafit.cli.predict import predict
from deltafit.cli.train import train
from deltafit.cli.verify import verify

app = typer.Typer(
    name="deltafit",
    help="Fine-tune pretrained transformers with low-rank adapters, and see what it costs and "
    "gives. Every command has an example in its --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _command in (train, compare, evaluate, predict, inspect, merge, verify):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"deltafit {version('deltafit')}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal or pipe that knows no "×" or "é" gets an escape instead of a traceback.
            stream.reconfigure(errors="backslashreplace")
    app()
