"""A run's folder: begun once, never overwritten, resumed only by the run it belongs to."""

from pathlib import Path
from typing import Any

from accelerate import PartialState

from deltafit.errors import DeltafitError, UsageError
from deltafit.files import read_json, write_json_atomically

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"


def begin(folder: Path, content: dict[str, Any], *, resume: bool) -> None:
    """Write ``run.json`` into a new folder, or check that an existing one is of the same run.

    Of several processes the main one does it, and the others wait.

    Args:
        folder: the run's folder.
        content: what decides the run's result, as JSON values.
        resume: whether an existing folder is to be gone on with.

    Raises:
        UsageError: the folder is there and ``resume`` was not asked for, or it is of another run;
            the sentence names the first setting that differs.
    """
    processes = PartialState()
    if processes.is_main_process:
        _begin(folder, content, resume)
    processes.wait_for_everyone()


def _begin(folder: Path, content: dict[str, Any], resume: bool) -> None:
    path = folder / RUN_FILE
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --output takes a folder.")
    occupied = folder.is_dir() and any(folder.iterdir())
    if not occupied:
        write_json_atomically(path, content)
        return
    if not resume:
        raise UsageError(
            f"{folder} exists already. Add --resume to go on with the run in it, or choose another "
            "--output."
        )
    if not path.is_file():
        raise UsageError(f"{folder} holds no {RUN_FILE}, so there is no run in it to resume.")
    difference = _first_difference(read_json(path), content, "")
    if difference is not None:
        key, before, now = difference
        raise UsageError(
            f"{folder} holds another run: {key} was {before!r} there and is {now!r} now. Resume it "
            "with its own settings, or choose another --output."
        )


def _first_difference(before: Any, now: Any, where: str) -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            found = _first_difference(before.get(key), now.get(key), f"{where}.{key}".strip("."))
            if found is not None:
                return found
        return None
    # JSON gives lists back for tuples.
    before, now = (list(v) if isinstance(v, tuple) else v for v in (before, now))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        differences = (_first_difference(b, n, f"{where}[{i}]") for i, (b, n) in pairs)
        return next((found for found in differences if found is not None), None)
    return None if before == now else (where, before, now)


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of a finished run; None while it is not finished.

    Raises:
        DeltafitError: ``metrics.json`` is damaged.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    metrics = read_json(path)
    if not isinstance(metrics, dict) or "costs" not in metrics:
        raise DeltafitError(f"{path} is incomplete; delete it and resume the run.")
    return metrics
