"""``deltafit train``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from deltafit.cli.flags import takes
from deltafit.cli.running import again_with_resume, console, explained, reporting
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings


@takes(data=DataConfig, head=HeadConfig, settings=TrainingSettings)
def train(
    *,
    model: Annotated[str, typer.Option(help="A checkpoint's folder, a hub name, minilm, smollm2.")],
    output: Annotated[Path, typer.Option(help="The run's folder; must not exist yet.")],
    method: Annotated[
        str, typer.Option(help="full, head, last-block or lora, such as lora:rank=4,alpha=8.")
    ] = "lora",
    rank: Annotated[str | None, typer.Option(help="LoRA's rank (8).")] = None,
    alpha: Annotated[str | None, typer.Option(help="LoRA's alpha (16).")] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(help="query,value or all-linear or re:EXPRESSION; default by architecture."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to adapt, such as 4,5.")] = None,
    dropout: Annotated[str | None, typer.Option(help="Of LoRA's input (0).")] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log to tensorboard or wandb; repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output.")
    ] = False,
    data: DataConfig,
    head: HeadConfig,
    settings: TrainingSettings,
) -> None:
    """Train one method on labelled texts and keep its adapter.

    Example: deltafit train --model minilm --data imdb --limit 1000 --output runs/imdb
    """
    with explained(again_with_resume()):
        from deltafit.cli.show import show_run
        from deltafit.methods import method_with
        from deltafit.training.train import train as run

        given: dict[str, Any] = {
            "rank": rank, "alpha": alpha, "dropout": dropout,
            "target_modules": target_modules, "layers": layers,
        }  # fmt: skip
        chosen = method_with(method, {k: v for k, v in given.items() if v is not None})
        with reporting() as reporter:
            result = run(
                model, data, output,
                method=chosen, head=head, settings=settings, resume=resume,
                trackers=tuple(track or ()), reporter=reporter,
            )  # fmt: skip
        show_run(console(), result)
