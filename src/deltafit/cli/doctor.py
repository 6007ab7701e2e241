"""``deltafit doctor``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.options import AsJson, Overrides
from deltafit.cli.running import FAILED, console, explained, json_line


def doctor(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")],
    *,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with a recipe before anything is trained, and say what mends it.

    Settings, texts and labels, padding, the head and what would be adapted. Nothing is written;
    the exit code is 1 if an error is found.

    Example: deltafit doctor recipes/sms-gpt2-sweep.yaml --set model=minilm
    """
    with explained():
        from deltafit.experiments.recipe_file import read_recipe

        read = read_recipe(recipe, overrides or ())
        from deltafit.experiments.doctor import doctor as look

        findings = look(read)
        if as_json:
            content = {"recipe": read.name, "findings": [asdict(each) for each in findings]}
            typer.echo(json_line(content))
        else:
            from deltafit.cli.show_findings import show_findings

            show_findings(console(), read, findings)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(FAILED)
