"""``deltafit merge``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.running import console, explained


def merge(
    folder: Annotated[Path, typer.Argument(help="A run's folder or its adapter folder.")],
    output: Annotated[Path, typer.Option(help="The checkpoint's folder; must not exist yet.")],
    model: Annotated[str | None, typer.Option(help="The base, if it has moved.")] = None,
) -> None:
    """Write adapter and base as one plain transformers checkpoint.

    Example: deltafit merge runs/imdb --output imdb-classifier
    """
    with explained():
        from deltafit.cli.show import show_merge
        from deltafit.prediction.merging import merge as run

        show_merge(console(), run(folder, output, model=model))
