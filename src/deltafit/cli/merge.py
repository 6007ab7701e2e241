"""``deltafit merge``."""

import typer

from deltafit.cli.flags import naming_flags
from deltafit.cli.options import AsJson, Base, OutputFolder, Probe, Run, TextColumn, Tolerance
from deltafit.cli.running import console, explained, json_line


def merge(
    folder: Run,
    output: OutputFolder,
    data: Probe = None,
    text_column: TextColumn = None,
    tolerance: Tolerance = 0.1,
    model: Base = None,
    as_json: AsJson = False,
) -> None:
    """Write adapter and base as one plain transformers checkpoint.

    Example: deltafit merge runs/imdb --output imdb-classifier
    """
    with explained(), naming_flags(("text_column", "tolerance")):
        from deltafit.data import check_path
        from deltafit.files import refuse_existing
        from deltafit.prediction.location import adapter_folder

        adapter_folder(folder)
        refuse_existing(output)
        if data is not None:
            check_path(data)
        from deltafit.cli.show_derived import as_json as json_of
        from deltafit.cli.show_derived import show_merge
        from deltafit.prediction.merging import merge as run

        report = run(
            folder, output,
            data=data, text_column=text_column, tolerance=tolerance, model=model,
        )  # fmt: skip
        if as_json:
            typer.echo(json_line(json_of(report)))
        else:
            show_merge(console(), report)
