"""``deltafit compare``."""

import re
from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.flags import takes, typed
from deltafit.cli.numbers import whole_numbers
from deltafit.cli.options import Jointly, Model, Resume, Track
from deltafit.cli.running import again_with_resume, check_start, console, explained, reporting
from deltafit.errors import DeltafitError, UsageError
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings

_Budget = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER",
        help="Size the methods to train about so many parameters besides the head: 300k.",
    ),
]


@takes(data=DataConfig, head=HeadConfig, settings=TrainingSettings)
def compare(
    context: typer.Context,
    *,
    model: Model,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The comparison's folder; must not exist yet.")
    ],
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Names with commas (head,last-block,lora,full)."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD", help="One method with settings, such as lora:rank=16; repeatable."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="INTS", help="Train each method with each of them: 0,1,2."),
    ] = None,
    budget: _Budget = None,
    jointly: Jointly = False,
    track: Track = None,
    resume: Resume = False,
    data: DataConfig,
    head: HeadConfig,
    settings: TrainingSettings,
) -> None:
    """Compare methods, and cheap baselines, on the same rows: one table and a verdict.

    Example: deltafit compare --model minilm --data imdb --limit 500 --output runs/compare

    Example: deltafit compare --model minilm --data a.csv --method lora:rank=4 --output out
    """
    with explained(again_with_resume()):
        names = [*_names(methods), *(method or ())]
        if seeds is not None and typed(context, "seed"):
            raise UsageError("Give --seed or --seeds, not both: --seeds says all of them.")
        size = None if budget is None else _parameters(budget)
        numbers = (settings.seed,) if seeds is None else whole_numbers("--seeds", seeds)
        check_start(model, data, output, resume=resume)
        from deltafit.methods import parse_method

        chosen = [parse_method(name) for name in names]
        from deltafit.cli.show import show_comparison
        from deltafit.experiments.comparison import DEFAULT_METHODS
        from deltafit.experiments.comparison import compare as run

        with reporting() as reporter:
            result = run(
                model, data, output,
                methods=chosen or DEFAULT_METHODS, seeds=numbers,
                head=head, settings=settings, budget=size, jointly=jointly, resume=resume,
                trackers=tuple(track or ()), reporter=reporter,
            )  # fmt: skip
        show_comparison(console(), result)
        if all(row.get("failure") for row in result.rows if row["kind"] == "run"):
            raise DeltafitError("Every method failed; its row says why.")


def _names(text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    if not all(names) or any(sign in text for sign in ":="):
        raise UsageError(
            f"--methods takes names with commas, such as head,lora; got {text!r}. A method with "
            "settings goes into a --method of its own: --method lora:rank=4,alpha=8."
        )
    return names


def _parameters(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", text)
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6}[match[2].lower()] if match else 0.0
    if number < 1 or number != int(number):
        raise UsageError(
            f"--budget takes a number of parameters, such as 300k, 1.5M or 250000; got {text!r}."
        )
    return int(number)
