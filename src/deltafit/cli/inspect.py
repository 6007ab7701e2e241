"""``deltafit inspect``."""

from typing import Annotated

import typer

from deltafit.cli.running import console, explained, json_line


def inspect(
    model_or_folder: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A model, or a run.")],
    rank: Annotated[str | None, typer.Option(help="LoRA's rank to count with (8).")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="As in train; default by architecture.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to adapt, such as 4,5.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="For the memory foretold.")] = 16,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens in an example.")] = 128,
    model: Annotated[str | None, typer.Option(help="An adapter's base, if it has moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where adapters can sit in a model and what they cost, or what a saved adapter changed.

    Example: deltafit inspect minilm --rank 16 --target-modules all-linear

    Example: deltafit inspect runs/imdb
    """
    with explained():
        from deltafit.cli.show import inspection_as_json, show_inspection
        from deltafit.methods import LoRA, method_with
        from deltafit.prediction.inspecting import inspect as run

        given = {"rank": rank, "target_modules": target_modules, "layers": layers}
        method = method_with("lora", {k: v for k, v in given.items() if v is not None})
        assert isinstance(method, LoRA)
        found = run(
            model_or_folder,
            method=method, batch_size=batch_size, sequence_length=sequence_length, model=model,
        )  # fmt: skip
        if as_json:
            typer.echo(json_line(inspection_as_json(found)))
        else:
            show_inspection(console(), found)
