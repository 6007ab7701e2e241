"""``deltafit evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.running import console, explained, json_line


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A run's folder or its adapter folder.")],
    data: Annotated[str, typer.Option(help="A file; or a folder or catalogue name's test part.")],
    text_column: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    model: Annotated[str | None, typer.Option(help="The base, if it has moved.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one forward pass.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a trained classifier on labelled texts.

    Example: deltafit evaluate runs/imdb --data more.csv --json
    """
    with explained():
        from deltafit.cli.show import show_metrics
        from deltafit.prediction.using import evaluate as run

        metrics = run(
            folder, data,
            text_column=text_column, label_column=label_column, model=model, batch_size=batch_size,
        )  # fmt: skip
        if as_json:
            typer.echo(json_line(metrics))
        else:
            show_metrics(console(), metrics)
