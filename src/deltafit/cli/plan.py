"""``deltafit plan``."""

import re
from typing import Annotated

import typer

from deltafit.cli.flags import takes, typed
from deltafit.cli.numbers import whole_numbers
from deltafit.cli.options import AsJson, Model
from deltafit.cli.running import check_readable, console, explained, json_line, reporting
from deltafit.errors import UsageError
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings

_UNITS = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_Ram = Annotated[
    str | None, typer.Option(metavar="SIZE", help="What a run's process may hold: 8GB, 500MB.")
]
_Minutes = Annotated[
    float | None, typer.Option(metavar="FLOAT", help="What a run may take, loading included.")
]
_Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="What to look at, the best liked first; repeatable (LoRA on all linear layers and on "
        "some, full, last-block, head).",
    ),
]
_Ranks = Annotated[
    str | None, typer.Option(metavar="INTS", help="Of methods that have one (4,8,16,32).")
]
_Lengths = Annotated[
    str | None,
    typer.Option(metavar="INTS", help="Tokens that texts are cut to (64,128,256,512)."),
]
_Batches = Annotated[str | None, typer.Option(metavar="INTS", help="Batch sizes (8,16,32).")]


@takes(data=DataConfig, head=HeadConfig, settings=TrainingSettings)
def plan(
    context: typer.Context,
    *,
    model: Model,
    data: DataConfig,
    head: HeadConfig,
    settings: TrainingSettings,
    ram: _Ram = None,
    minutes: _Minutes = None,
    method: _Methods = None,
    ranks: _Ranks = None,
    lengths: _Lengths = None,
    batches: _Batches = None,
    as_json: AsJson = False,
) -> None:
    """Say which methods, ranks, lengths and batches fit into a machine and some time.

    Some steps of each method are timed, in processes of their own; nothing is written.

    Example: deltafit plan --model minilm --data imdb --limit 2000 --ram 8GB --minutes 20
    """
    with explained():
        chosen = _numbers(context, settings, ranks, lengths, batches)
        size = None if ram is None else _bytes(ram)
        if minutes is not None and not minutes > 0:
            raise UsageError(f"--minutes must be above 0: a run takes some time; got {minutes:g}.")
        if size is None and minutes is None:
            raise UsageError("There is no limit to plan for. Give --ram, --minutes, or both.")
        check_readable(model, data)
        from deltafit.experiments.plan import PREFERRED
        from deltafit.experiments.plan import plan as find

        with reporting(silent=as_json) as reporter:
            found = find(
                model, data, ram=size, minutes=minutes, methods=tuple(method or PREFERRED),
                head=head, settings=settings, reporter=reporter, **chosen,
            )  # fmt: skip
        if as_json:
            typer.echo(json_line(found.to_dict()))
            return
        from deltafit.cli.show_estimate import show_fitting

        show_fitting(console(), found)


def _numbers(
    context: typer.Context,
    settings: TrainingSettings,
    ranks: str | None,
    lengths: str | None,
    batches: str | None,
) -> dict[str, tuple[int, ...]]:
    """Return the lists that were given; a setting that was typed leaves one choice."""
    given = {"ranks": ranks, "lengths": lengths, "batches": batches}
    for setting, name in (("max_length", "lengths"), ("batch_size", "batches")):
        for flag in typed(context, setting):
            if given[name] is not None:
                raise UsageError(f"Give {flag} or --{name}, not both: --{name} says all of them.")
            given[name] = str(getattr(settings, setting))
    texts = {name: text for name, text in given.items() if text is not None}
    return {name: whole_numbers(f"--{name}", text) for name, text in texts.items()}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): size for name, size in _UNITS.items()}
    if match is None or (match[2] and match[2].lower() not in units):
        raise UsageError(
            f"--ram takes a size such as 8GB, 500MB or 16GiB; got {text!r}. Its units are "
            f"{', '.join(_UNITS)}."
        )
    if not match[2]:
        raise UsageError(f"--ram {text.strip()} has no unit. Write {text.strip()}GB, or another.")
    size = round(float(match[1]) * units[match[2].lower()])
    if not size:
        raise UsageError(f"--ram must be above 0: a run holds some memory; got {text!r}.")
    return size
