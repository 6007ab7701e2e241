"""``deltafit merge``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.options import Base, Run
from deltafit.cli.running import console, explained


def merge(
    folder: Run,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The checkpoint's folder; must not exist yet.")
    ],
    model: Base = None,
) -> None:
    """Write adapter and base as one plain transformers checkpoint.

    Example: deltafit merge runs/imdb --output imdb-classifier
    """
    with explained():
        from deltafit.files import refuse_existing
        from deltafit.prediction.location import adapter_folder

        adapter_folder(folder)
        refuse_existing(output)
        from deltafit.cli.show import show_merge
        from deltafit.prediction.merging import merge as run

        show_merge(console(), run(folder, output, model=model))
