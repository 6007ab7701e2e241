"""``deltafit verify``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.running import console, explained


def verify(
    folder: Annotated[Path, typer.Argument(help="A run's folder or its adapter folder.")],
    model: Annotated[str | None, typer.Option(help="The base, if it has moved.")] = None,
) -> None:
    """Check that an adapter, its base and its head still give the logits it was saved with.

    Example: deltafit verify runs/imdb
    """
    with explained():
        from deltafit.cli.show import show_verified
        from deltafit.prediction.using import verify as run

        show_verified(console(), folder, run(folder, model=model))
