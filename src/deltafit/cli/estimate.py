"""``deltafit estimate``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.options import AsJson, Jointly, Overrides
from deltafit.cli.running import console, explained, json_line, reporting


def estimate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")],
    *,
    overrides: Overrides = None,
    jointly: Jointly = False,
    as_json: AsJson = False,
) -> None:
    """Say what the runs of a recipe will take: parameters, memory and time.

    Ten steps of each kind of run are timed, in processes of their own; nothing is written.

    Example: deltafit estimate recipes/sms-gpt2-sweep.yaml --set model=minilm
    """
    with explained():
        from deltafit.experiments.recipe_file import read_recipe

        read = read_recipe(recipe, overrides or ())
        from deltafit.experiments.estimate import estimate as find

        with reporting(silent=as_json) as reporter:
            found = find(read, jointly=jointly, reporter=reporter)
        if as_json:
            typer.echo(json_line(found.to_dict()))
            return
        from deltafit.cli.show_estimate import show_estimate

        show_estimate(console(), found)
