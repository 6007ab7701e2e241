"""``deltafit inspect``."""

from typing import Annotated

import typer

from deltafit.cli.flags import naming_flags, typed
from deltafit.cli.options import AsJson, Base, Layers, Rank, TargetModules
from deltafit.cli.running import console, explained, json_line
from deltafit.errors import UsageError

_OF_MODELS = ("rank", "target_modules", "layers", "batch_size", "sequence_length")


def inspect(
    context: typer.Context,
    model_or_folder: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A model, or a run.")],
    rank: Rank = None,
    target_modules: TargetModules = None,
    layers: Layers = None,
    batch_size: Annotated[
        int, typer.Option(metavar="INT", min=1, help="For the memory foretold.")
    ] = 16,
    sequence_length: Annotated[
        int, typer.Option(metavar="INT", min=1, help="Tokens in an example.")
    ] = 128,
    model: Base = None,
    as_json: AsJson = False,
) -> None:
    """Show where adapters can sit in a model and what they cost, or what a saved adapter changed.

    Example: deltafit inspect minilm --rank 16 --target-modules all-linear

    Example: deltafit inspect runs/imdb
    """
    with explained():
        _check(model_or_folder, typed(context, *_OF_MODELS), model)
        from deltafit.methods import LoRA, method_with

        flags = {"rank": rank, "target_modules": target_modules, "layers": layers}
        given = {name: text for name, text in flags.items() if text is not None}
        with naming_flags(given):
            method = method_with("lora", given)
        assert isinstance(method, LoRA)
        from deltafit.cli.show_inspection import inspection_as_json, show_inspection
        from deltafit.prediction.inspecting import inspect as run

        found = run(
            model_or_folder,
            method=method, batch_size=batch_size, sequence_length=sequence_length, model=model,
        )  # fmt: skip
        if as_json:
            typer.echo(json_line(inspection_as_json(found)))
        else:
            show_inspection(console(), found)


def _check(model_or_folder: str, of_models: list[str], base: str | None) -> None:
    """Refuse flags that say nothing of what is looked at, and what is not there."""
    from deltafit.data import resolve_model
    from deltafit.prediction.location import adapter_folder, is_run_or_adapter

    if is_run_or_adapter(model_or_folder):
        adapter_folder(model_or_folder)
        if of_models:
            raise UsageError(
                f"{model_or_folder} holds a trained adapter, which has its own settings; "
                f"{' and '.join(of_models)} are for a model. Leave them out."
            )
        return
    resolve_model(model_or_folder)
    if base is not None:
        raise UsageError(
            f"--model names the base of a saved adapter, and {model_or_folder} is no folder of "
            "one. Leave it out."
        )
