"""A run's folder: begun once, never overwritten, resumed only by the run it belongs to."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltafit.errors import DeltafitError, UsageError
from deltafit.files import check_run_folder, read_json, write_json_atomically
from deltafit.training.accelerator import processes
from deltafit.training.identity import deciding
from deltafit.training.noting import NOTE_FILES, forget_notes

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
_LOGS = "logs"


@contextmanager
def begun(
    folder: Path, content: dict[str, Any], *, resume: bool, may_change: Collection[str] = ()
) -> Iterator[None]:
    """Write ``run.json`` into a new folder, or check that an existing one is of the same run.

    If the block fails before anything worth resuming was written, a new folder goes again, so
    that the corrected command can have its name.

    Of several processes the main one does it, and the others wait.

    Args:
        folder: the run's folder.
        content: what decides the run's result, as JSON values.
        resume: whether an existing folder is to be gone on with.
        may_change: keys of the content that may differ when it is gone on with.

    Raises:
        UsageError: the folder is there and ``resume`` was not asked for, or it is of another run;
            the sentence names the first setting that differs.
    """
    process = processes()
    occupied = folder.is_dir() and any(folder.iterdir())
    if process.is_main_process:
        check_run_folder(folder, resume=resume)
        if occupied:
            _check_same_run(folder, content, may_change)
        if not occupied or may_change:
            write_json_atomically(folder / RUN_FILE, content)
    process.wait_for_everyone()
    try:
        yield
    except BaseException:
        if process.is_main_process and not occupied and _holds_no_result(folder):
            shutil.rmtree(folder, ignore_errors=True)  # why it failed is what to tell
        raise
    finally:
        if process.is_main_process:
            forget_notes(folder)


def _holds_no_result(folder: Path) -> bool:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return all(file.parts[0] in (_LOGS, RUN_FILE, *NOTE_FILES) for file in files)


def _check_same_run(folder: Path, content: dict[str, Any], may_change: Collection[str]) -> None:
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(f"{folder} holds no {RUN_FILE}, so there is no run in it to resume.")
    before = _deciding(read_json(path), may_change)
    difference = _first_difference(before, _deciding(content, may_change), "")
    if difference is not None:
        key, before, now = difference
        raise UsageError(
            f"{folder} holds another run: {key} was {before!r} there and is {now!r} now. Resume it "
            "with its own settings, or choose another --output."
        )


def _deciding(content: Any, may_change: Collection[str]) -> Any:
    try:
        return deciding({key: value for key, value in content.items() if key not in may_change})
    except (AttributeError, KeyError, TypeError):  # damaged: it will differ
        return content


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
