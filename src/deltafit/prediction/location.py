"""Where a saved classifier lies. No model is loaded, so that a wrong path is refused at once."""

from pathlib import Path

from deltafit.errors import DeltafitError, UsageError

FACTS_FILE = "deltafit.json"
_RUN_FILE = "run.json"  # what `train` and `compare` begin a folder with


def is_run_or_adapter(path: str | Path) -> bool:
    """Say whether a folder is that of a run or an adapter; a base model's is not."""
    return any((Path(path) / name).is_file() for name in (FACTS_FILE, _RUN_FILE))


def adapter_folder(path: str | Path) -> Path:
    """Return the adapter's folder, given it or the run's folder that holds it.

    Raises:
        DeltafitError: neither is there.
        UsageError: the path is that of a file.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder} is a file. First comes the folder of a run (the --output of train); a file "
            "of texts goes to --data, where there is one."
        )
    if not folder.is_dir():
        raise DeltafitError(f"There is no folder {folder}. Give the --output of a training run.")
    for candidate in (folder, folder / "adapter"):
        if (candidate / FACTS_FILE).is_file():
            return candidate
    runs = sorted(path.parent for path in folder.glob("runs/*/metrics.json"))
    if runs:
        raise DeltafitError(
            f"{folder} holds a comparison of {len(runs)} runs. Give one of them, such as {runs[0]}."
        )
    if (folder / _RUN_FILE).is_file():
        raise DeltafitError(
            f"The run in {folder} has not finished, so it has no adapter yet. Continue it with "
            "the command that started it and --resume."
        )
    if (folder / "adapter_config.json").is_file():
        raise DeltafitError(
            f"{folder} holds an adapter without {FACTS_FILE}, so its labels and base are not "
            "known. Load it in Python: deltafit.adapters.read_adapter and load_adapter."
        )
    raise DeltafitError(f"{folder} holds no adapter (no {FACTS_FILE}).")
