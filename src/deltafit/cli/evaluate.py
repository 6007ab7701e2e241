"""``deltafit evaluate``."""

import typer

from deltafit.cli.options import AsJson, Base, BatchTokens, LabelColumn, Labelled, Run, TextColumn
from deltafit.cli.running import check_use, console, explained, json_line, reporting


def evaluate(
    folder: Run,
    data: Labelled,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    model: Base = None,
    batch_tokens: BatchTokens = 2048,
    as_json: AsJson = False,
) -> None:
    """Measure a trained classifier on labelled texts.

    Example: deltafit evaluate runs/imdb --data more.csv --json
    """
    with explained():
        check_use(folder, data)
        from deltafit.cli.show import show_metrics
        from deltafit.prediction.using import evaluate as run
        from deltafit.training.progress import Followed

        with reporting("texts") as reporter:
            metrics = run(
                folder, data,
                text_column=text_column, label_column=label_column, model=model,
                batch_tokens=batch_tokens, progress=Followed(reporter, "evaluation"),
            )  # fmt: skip
        if as_json:
            typer.echo(json_line(metrics))
        else:
            show_metrics(console(), metrics)
