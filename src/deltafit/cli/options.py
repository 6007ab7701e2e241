"""Arguments and options that several commands have in common, with what --help says of them."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="A run's folder or its adapter folder.")]
Model = Annotated[
    str, typer.Option(metavar="MODEL", help="A checkpoint's folder, a hub name, minilm, smollm2.")
]
Base = Annotated[str | None, typer.Option(metavar="MODEL", help="The base, if it has moved.")]
Labelled = Annotated[
    str, typer.Option(metavar="DATA", help="A file; or a folder or catalogue name's test part.")
]
TextColumn = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of texts.")]
LabelColumn = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of labels.")]
Rank = Annotated[str | None, typer.Option(metavar="INT", help="LoRA's rank (8).")]
TargetModules = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="query,value or all-linear or re:EXPRESSION; default by architecture."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(metavar="TRACKER", help="Log to tensorboard, wandb or mlflow too; repeatable."),
]
Layers = Annotated[str | None, typer.Option(metavar="INTS", help="Blocks to adapt, such as 4,5.")]
OutputFolder = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="The new folder; must not exist yet.")
]
CutRank = Annotated[
    int | None, typer.Option(metavar="INT", min=1, help="The rank that every matrix is cut to.")
]
Energy = Annotated[
    float | None,
    typer.Option(metavar="FLOAT", help="Instead: the share of each ‖ΔW‖² to keep, such as 0.99."),
]
Probe = Annotated[
    str | None, typer.Option(metavar="DATA", help="Texts to compare the predictions on as well.")
]
Tolerance = Annotated[
    float, typer.Option(metavar="FLOAT", help="The largest change of a logit that is let pass.")
]
BatchTokens = Annotated[
    int, typer.Option(metavar="INT", min=1, help="Most tokens in one forward pass.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, such as settings.epochs=1 or model=minilm; repeatable.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(metavar="here|ray", help="This machine, or a Ray cluster (docs/recipes.md)."),
]
Processes = Annotated[
    int, typer.Option(metavar="INT", min=1, help="Do runs in so many processes here.")
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object.")]
Jointly = Annotated[
    bool,
    typer.Option(
        "--jointly", metavar="", help="Train LoRA runs at once, on one shared base model."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", metavar="", help="Go on with what --output holds.")
]
