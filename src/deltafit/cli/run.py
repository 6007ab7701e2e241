"""``deltafit run``."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.options import Engine, Jointly, Overrides, Processes
from deltafit.cli.running import again, console, explained
from deltafit.errors import DeltafitError


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")],
    *,
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The store of runs; recipes may share it."),
    ] = Path("store"),
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", metavar="", help="Say which runs there are and what they take; do none."
        ),
    ] = False,
    jointly: Jointly = False,
    engine: Engine = "here",
    processes: Processes = 1,
) -> None:
    """Do the runs of a recipe that are not finished yet, and compare them all.

    Example: deltafit run recipes/imdb-bert.yaml --set model=minilm --dry-run
    """
    with explained(again()):
        from deltafit.experiments.recipe_file import read_recipe

        read = read_recipe(recipe, overrides or ())
        from deltafit.cli.dashboard import Dashboard
        from deltafit.experiments import dry_run as planning
        from deltafit.experiments.recipe_run import run as do

        with Dashboard(console(stderr=True), read.name).shown() as view:
            if dry_run:
                plan = planning.dry_run(read, output, jointly=jointly, reporter=view)
            else:
                result = do(
                    read, output, jointly=jointly,
                    engine=engine,  # type: ignore[arg-type]  # which it checks
                    processes=processes, reporter=view, watch=view.watch,
                )  # fmt: skip
        if dry_run:
            from deltafit.cli.show_plan import show_plan

            show_plan(console(), plan, _estimate(recipe, overrides or (), jointly=jointly))
            return
        from deltafit.cli.show import say, show_comparison

        show_comparison(console(), result)
        say(console(), f"Every run: {result.folder / 'runs.csv'}")
        if read.search is not None:
            say(console(), f"Every trial of the search: {result.folder / 'trials.csv'}")
        if all(row.get("failure") for row in result.rows if row["kind"] == "run"):
            raise DeltafitError("Every method failed; its row says why.")


def _estimate(recipe: Path, overrides: Sequence[str], *, jointly: bool) -> str:
    """Return the command that estimates the same runs."""
    changes = (word for change in overrides for word in ("--set", change))
    flags = ["--jointly"] if jointly else []
    return shlex.join(["deltafit", "estimate", str(recipe), *changes, *flags])
