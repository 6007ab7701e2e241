"""``deltafit train``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.flags import naming_flags, takes
from deltafit.cli.options import Layers, Model, Rank, Resume, TargetModules, Track
from deltafit.cli.running import again_with_resume, check_start, console, explained, reporting
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings


@takes(data=DataConfig, head=HeadConfig, settings=TrainingSettings)
def train(
    *,
    model: Model,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder; must not exist yet.")
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="Such as head, bitfit, full or lora:rank=4,alpha=8 (docs/methods.md).",
        ),
    ] = "lora",
    rank: Rank = None,
    alpha: Annotated[str | None, typer.Option(metavar="FLOAT", help="LoRA's alpha (16).")] = None,
    target_modules: TargetModules = None,
    layers: Layers = None,
    dropout: Annotated[
        str | None, typer.Option(metavar="FLOAT", help="Of LoRA's input (0).")
    ] = None,
    track: Track = None,
    resume: Resume = False,
    data: DataConfig,
    head: HeadConfig,
    settings: TrainingSettings,
) -> None:
    """Train one method on labelled texts and keep its adapter.

    Example: deltafit train --model minilm --data imdb --limit 1000 --output runs/imdb
    """
    with explained(again_with_resume()):
        check_start(model, data, output, resume=resume)
        from deltafit.methods import method_with

        flags = {
            "rank": rank, "alpha": alpha, "dropout": dropout,
            "target_modules": target_modules, "layers": layers,
        }  # fmt: skip
        given = {name: text for name, text in flags.items() if text is not None}
        with naming_flags(given):
            chosen = method_with(method, given)
        from deltafit.cli.show import show_run
        from deltafit.experiments.doctor import consult
        from deltafit.training.train import train as run

        with reporting() as reporter:
            result = run(
                model, data, output,
                method=chosen, head=head, settings=settings, resume=resume,
                trackers=tuple(track or ()), reporter=reporter,
                consult=lambda config, splits: consult([config], splits, reporter),
            )  # fmt: skip
        show_run(console(), result)
