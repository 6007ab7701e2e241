"""``deltafit compare``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.flags import takes
from deltafit.cli.running import again_with_resume, console, explained, reporting
from deltafit.errors import UsageError
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings


@takes(data=DataConfig, head=HeadConfig, settings=TrainingSettings)
def compare(
    *,
    model: Annotated[str, typer.Option(help="A checkpoint's folder, a hub name, minilm, smollm2.")],
    output: Annotated[Path, typer.Option(help="The comparison's folder; must not exist yet.")],
    methods: Annotated[
        str | None, typer.Option(help="Names with commas (head,last-block,lora,full).")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="One method with settings, such as lora:rank=16; repeatable."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Train each method with each of them: 0,1,2.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what --output holds.")
    ] = False,
    data: DataConfig,
    head: HeadConfig,
    settings: TrainingSettings,
) -> None:
    """Compare methods, and cheap baselines, on the same rows: one table and a verdict.

    Example: deltafit compare --model minilm --data imdb --limit 500 --output runs/compare

    Example: deltafit compare --model minilm --data D.csv --method lora:rank=4 --method head
    --output runs/two
    """
    with explained(again_with_resume()):
        from deltafit.cli.show import show_comparison
        from deltafit.experiments.comparison import DEFAULT_METHODS
        from deltafit.experiments.comparison import compare as run

        with reporting() as reporter:
            result = run(
                model, data, output,
                methods=[*_names(methods), *(method or ())] or DEFAULT_METHODS,
                seeds=(settings.seed,) if seeds is None else _whole_numbers(seeds),
                head=head, settings=settings, resume=resume, reporter=reporter,
            )  # fmt: skip
        show_comparison(console(), result)


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


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds takes whole numbers with commas; got {text!r}.") from None
