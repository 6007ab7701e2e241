"""``deltafit truncate``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.flags import naming_flags, typed
from deltafit.cli.options import AsJson, Base, CutRank, Energy, Probe, Run, TextColumn, Tolerance
from deltafit.cli.running import console, explained, json_line
from deltafit.errors import UsageError

_OF_CUTTING = ("rank", "energy", "data", "text_column", "tolerance", "model")


def truncate(
    context: typer.Context,
    folder: Run,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The new folder; none shows what each rank would lose."),
    ] = None,
    rank: CutRank = None,
    energy: Energy = None,
    data: Probe = None,
    text_column: TextColumn = None,
    tolerance: Tolerance = 0.1,
    model: Base = None,
    as_json: AsJson = False,
) -> None:
    """Cut a trained LoRA adapter to a smaller rank, or show what each rank would lose.

    Example: deltafit truncate runs/imdb

    Example: deltafit truncate runs/imdb --rank 4 --output imdb-rank4
    """
    with explained(), naming_flags(_OF_CUTTING):
        from deltafit.data import check_path
        from deltafit.files import refuse_existing
        from deltafit.prediction.location import adapter_folder

        adapter_folder(folder)
        idle = typed(context, *_OF_CUTTING) if output is None else []
        if idle:
            raise UsageError(
                f"Without --output nothing is cut, and the errors of all ranks are shown; "
                f"{' and '.join(idle)} would do nothing. Add --output."
            )
        if output is not None:
            refuse_existing(output)
        if data is not None:
            check_path(data)
        from deltafit.cli.show_derived import as_json as json_of
        from deltafit.cli.show_derived import show_errors, show_truncate
        from deltafit.prediction.truncating import rank_errors
        from deltafit.prediction.truncating import truncate as run

        if output is None:
            errors = rank_errors(folder)
            if as_json:
                typer.echo(json_line(json_of(errors)))
            else:
                show_errors(console(), errors)
            return
        report = run(
            folder, output,
            rank=rank, energy=energy, data=data, text_column=text_column, tolerance=tolerance,
            model=model,
        )  # fmt: skip
        if as_json:
            typer.echo(json_line(json_of(report)))
        else:
            show_truncate(console(), report)
