"""``deltafit combine``."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.flags import naming_flags
from deltafit.cli.options import (
    AsJson,
    Base,
    CutRank,
    Energy,
    OutputFolder,
    Probe,
    TextColumn,
    Tolerance,
)
from deltafit.cli.running import console, explained, json_line
from deltafit.errors import UsageError


def combine(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs' folders or adapter folders.")
    ],
    output: OutputFolder,
    way: Annotated[str, typer.Option(metavar="WAY", help="linear, svd, ties or dare.")] = "linear",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FLOATS", help="One for each, such as 0.7,0.3; 1/n each (ties: 1)."),
    ] = None,
    rank: CutRank = None,
    energy: Energy = None,
    density: Annotated[
        float | None,
        typer.Option(metavar="FLOAT", help="Share of values that ties or dare leaves."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Of the values that dare leaves.")] = 0,
    head: Annotated[
        str, typer.Option(metavar="NAME", help="average, or the folder whose head is taken.")
    ] = "average",
    data: Probe = None,
    text_column: TextColumn = None,
    tolerance: Tolerance = 0.1,
    model: Base = None,
    as_json: AsJson = False,
) -> None:
    """Combine several LoRA adapters of one base, with the same labels, into one.

    Example: deltafit combine runs/a runs/b --weights 0.7,0.3 --output both

    Example: deltafit combine runs/a runs/b --way ties --density 0.2 --rank 16 --output both
    """
    with explained():
        _check(folders, output, data)
        numbers = None if weights is None else _numbers(weights)
        from deltafit.adapters.combination import Combination
        from deltafit.cli.show_derived import as_json as json_of
        from deltafit.cli.show_derived import show_combine
        from deltafit.prediction.combining import combine as run

        named = [field.name for field in fields(Combination)]
        with naming_flags([*named, "head", "tolerance", "text_column"]):
            report = run(
                folders, output,
                combination=Combination(
                    way,  # type: ignore[arg-type]  # checked there
                    numbers, rank, energy, density, seed,
                ),
                head=head, data=data, text_column=text_column, tolerance=tolerance, model=model,
            )  # fmt: skip
        if as_json:
            typer.echo(json_line(json_of(report)))
        else:
            show_combine(console(), folders, report)


def _check(folders: list[Path], output: Path, data: str | None) -> None:
    """Refuse what is not there, or is there already, before torch loads."""
    from deltafit.data import check_path
    from deltafit.files import refuse_existing
    from deltafit.prediction.location import adapter_folder

    for folder in folders:
        adapter_folder(folder)
    refuse_existing(output)
    if data is not None:
        check_path(data)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--weights takes numbers with commas between them, such as 0.7,0.3; got {text!r}."
        ) from error
