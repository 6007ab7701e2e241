"""``deltafit ranks``."""

from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.options import AsJson, Base, BatchTokens, LabelColumn, Labelled, Run, TextColumn
from deltafit.cli.running import check_use, console, explained, json_line, reporting


def ranks(
    folder: Run,
    data: Labelled,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder for a report, its figures and plots."),
    ] = None,
    matrices: Annotated[
        bool, typer.Option("--matrices", metavar="", help="Leave out each single matrix, too.")
    ] = False,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    model: Base = None,
    batch_tokens: BatchTokens = 2048,
    as_json: AsJson = False,
) -> None:
    """Find the smallest rank that a trained LoRA adapter needs, and which layers carry it.

    Every rank is cut from the trained adapter and judged on the same labelled texts, which should
    be texts that nothing was chosen on; nothing is trained.

    Example: deltafit ranks runs/imdb --data test.csv --output imdb-ranks
    """
    with explained():
        from deltafit.files import refuse_existing

        check_use(folder, data)
        if output is not None:
            refuse_existing(output)
        from deltafit.cli.show_ranks import show_ranks
        from deltafit.experiments.rank_report import report_as_dict
        from deltafit.experiments.ranks import ranks as run

        with reporting("texts") as reporter:
            report = run(
                folder, data,
                output=output, matrices=matrices, text_column=text_column,
                label_column=label_column, model=model, batch_tokens=batch_tokens,
                reporter=reporter,
            )  # fmt: skip
        if as_json:
            typer.echo(json_line(report_as_dict(report)))
        else:
            show_ranks(console(), report, output)
