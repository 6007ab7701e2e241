"""``deltafit extract``."""

from typing import Annotated

import typer

from deltafit.cli.flags import naming_flags
from deltafit.cli.options import (
    AsJson,
    CutRank,
    Energy,
    OutputFolder,
    Probe,
    TextColumn,
    Tolerance,
)
from deltafit.cli.running import console, explained, json_line
from deltafit.errors import UsageError

_SETTINGS = ("base", "rank", "energy", "dense", "max_length", "text_column", "tolerance")

_Dense = Annotated[
    bool, typer.Option("--dense", metavar="", help="Instead: keep each ΔW whole, no LoRA.")
]
_MaxLength = Annotated[
    int | None,
    typer.Option(metavar="INT", min=1, help="Tokens a text is cut to, if not as before."),
]


def extract(
    tuned: Annotated[
        str, typer.Argument(metavar="CHECKPOINT|RUN", help="The fine-tuned model, or a run.")
    ],
    output: OutputFolder,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What a checkpoint was fine-tuned from; a run knows."),
    ] = None,
    rank: CutRank = None,
    energy: Energy = None,
    dense: _Dense = False,
    keep_others: Annotated[
        bool, typer.Option("--keep-others", metavar="", help="Store norms that changed whole.")
    ] = False,
    max_length: _MaxLength = None,
    data: Probe = None,
    text_column: TextColumn = None,
    tolerance: Tolerance = 0.1,
    as_json: AsJson = False,
) -> None:
    """Make an adapter of what a fine-tuned classifier changed in its base.

    Example: deltafit extract tuned-checkpoint --base minilm --rank 16 --output tuned-lora

    Example: deltafit extract runs/full --energy 0.95 --output full-as-lora

    Example: deltafit extract runs/dora --dense --output dora-as-delta
    """
    with explained(), naming_flags(_SETTINGS):
        from deltafit.data import check_path, resolve_model
        from deltafit.files import refuse_existing
        from deltafit.prediction.location import adapter_folder, is_run_or_adapter

        if is_run_or_adapter(tuned):
            adapter_folder(tuned)
        else:
            resolve_model(tuned)
            if base is None:
                raise UsageError(
                    f"{tuned} is a checkpoint, which does not say what it was fine-tuned from. "
                    "Name that with --base."
                )
            resolve_model(base)
        refuse_existing(output)
        if data is not None:
            check_path(data)
        from deltafit.cli.show_derived import as_json as json_of
        from deltafit.cli.show_derived import show_extract
        from deltafit.prediction.extracting import extract as run

        report = run(
            tuned, output,
            base=base, rank=rank, energy=energy, dense=dense, keep_others=keep_others,
            max_length=max_length, data=data, text_column=text_column, tolerance=tolerance,
        )  # fmt: skip
        if as_json:
            typer.echo(json_line(json_of(report)))
        else:
            show_extract(console(), tuned, report)
