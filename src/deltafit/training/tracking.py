"""What follows a run beside its folder: TensorBoard, W&B, MLflow, others that Accelerate has."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from filelock import FileLock

from deltafit.errors import DeltafitError, UsageError
from deltafit.files import read_json, safe_name, write_json_atomically
from deltafit.training.accelerator import processes
from deltafit.training.guarded import GuardedTracker
from deltafit.training.progress import Reporter

_PROJECT = "deltafit"
_RECORD_FILE = "trackers.json"
# By what a tracker's run is found again.
_IDENTITIES: dict[str, Callable[[Any], str]] = {
    "wandb": lambda run: str(run.id),
    "mlflow": lambda run: str(run.info.run_id),
}


@dataclass(frozen=True)
class Tracking:
    """Which trackers follow a run, and what it is called in them.

    Attributes:
        trackers: names that Accelerate knows; ``"all"`` means those that are installed.
        folder: for what they write on this machine.
        name: of the run; None leaves it to them.
        group: of the runs that it is compared with; None for a run by itself.
    """

    trackers: tuple[str, ...]
    folder: Path
    name: str | None = None
    group: str | None = None

    @property
    def place(self) -> Path:
        """The folder of this run's own logs."""
        return self.folder / safe_name(self.name or _PROJECT)

    @property
    def record(self) -> Path:
        """The file that says of each tracker under which identity it has the run."""
        return self.place / _RECORD_FILE


@dataclass(frozen=True)
class RunTrackers:
    """A run's trackers at work; none in all processes but the main one.

    Attributes:
        started: those that were asked for.
    """

    started: Sequence[GuardedTracker] = ()

    def log(self, entry: Mapping[str, Any]) -> None:
        """Log the numbers of an evaluation at its step."""
        for tracker in self.started:
            tracker.log(numbers_in(entry), step=entry["step"])

    def conclude(self, metrics: Mapping[str, Any]) -> None:
        """Log what a run came to, given as its ``metrics.json``."""
        last = max((entry["step"] for entry in metrics["history"]), default=0)
        for tracker in self.started:
            tracker.conclude(final_figures(metrics), last)


def final_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a ``metrics.json`` by where they stand: ``"test/accuracy"``.

    Those before training are ``"before/test/accuracy"``, the costs ``"costs/training_seconds"``.
    """
    parts = dict(metrics["after"])
    parts |= {f"before/{name}": figures for name, figures in metrics["before"].items()}
    parts["costs"] = metrics["costs"]
    return {
        f"{name}/{key}": value
        for name, figures in parts.items()
        for key, value in numbers_in(figures).items()
    }


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers of those names.

    Raises:
        UsageError: there is none of a name, or it is not installed.
    """
    if "all" in names:
        return tuple(map(str, get_available_trackers()))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(
                f"A tracker cannot be used: there is none called {name!r}, but "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}."
            )
        if not is_installed(name):
            raise UsageError(
                f"The tracker {name} is not installed. Install TensorBoard, W&B and MLflow with "
                "pip install 'deltafit[trackers]', another with pip."
            )
    return tuple(dict.fromkeys(names))


def is_installed(name: str) -> bool:
    """Return whether a tracker can be imported."""
    return name in map(str, get_available_trackers())


def offline_sentence(names: Sequence[str], folder: Path) -> str | None:
    """Return what to say of W&B where nobody is logged in to it; None where that is no matter."""
    if "wandb" not in names or "WANDB_MODE" in os.environ or _is_logged_in():
        return None
    return (
        "Nobody is logged in to W&B here, so runs are logged offline. After `wandb login`, "
        f"`wandb sync` uploads the folders in {folder / 'wandb'}."
    )


@contextmanager
def started_trackers(
    tracking: Tracking | None, facts: Mapping[str, Any], reporter: Reporter
) -> Iterator[RunTrackers]:
    """Give a run's trackers; they are finished when the block ends, however it ends.

    A run that is gone on with goes on in TensorBoard, W&B and MLflow too. One that fails is told in
    a sentence, and the block goes on without it.

    Args:
        tracking: which, all of them installed; None for none.
        facts: nested settings of the run.
        reporter: told what they fail with.
    """
    if tracking is None or not processes().is_main_process:
        yield RunTrackers()
        return
    run = tracking.name or "the run"
    started = [GuardedTracker(name, run, reporter) for name in tracking.trackers]
    try:
        for tracker in started:
            with tracker.guarded():
                _start(tracker, tracking, facts)
        yield RunTrackers(started)
    finally:
        for tracker in started:
            tracker.finish()
            if tracker.concluded and tracker.works:
                with tracker.guarded():
                    _note_finished(tracker.name, tracking.record)


def track_finished(
    tracking: Tracking, facts: Mapping[str, Any], metrics: Mapping[str, Any], reporter: Reporter
) -> tuple[str, ...]:
    """Tell the trackers of a finished run that have not followed it to its end, all at once.

    Args:
        tracking: which there are.
        facts: nested settings of the run.
        metrics: the content of its ``metrics.json``.
        reporter: told what they fail with.

    Returns:
        Those that failed.
    """
    finished = _known(tracking.record)["finished"]
    left = tuple(name for name in tracking.trackers if name not in finished)
    with started_trackers(replace(tracking, trackers=left), facts, reporter) as trackers:
        for entry in metrics["history"]:
            trackers.log(entry)
        trackers.conclude(metrics)
    return tuple(tracker.name for tracker in trackers.started if not tracker.works)


def _start(guarded: GuardedTracker, tracking: Tracking, facts: Mapping[str, Any]) -> None:
    """Start a tracker, and record under which identity the run stands in it."""
    name = guarded.name
    tracking.place.mkdir(parents=True, exist_ok=True)
    known = _known(tracking.record)
    with _alone(name, tracking.folder):
        tracker = guarded.start(lambda: _made(name, tracking, known["runs"].get(name)))
    if name not in known["runs"]:  # MLflow refuses settings twice
        tracker.store_init_configuration(flat(facts))
    identity = _IDENTITIES.get(name)
    known["runs"][name] = identity(tracker.tracker) if identity else None
    write_json_atomically(tracking.record, known)


def _alone(name: str, folder: Path) -> AbstractContextManager[object]:
    """Keep other processes from starting MLflow, of which each would make database and group."""
    return FileLock(folder / "mlflow.lock") if name == "mlflow" else nullcontext()


def _note_finished(name: str, record: Path) -> None:
    known = _known(record)
    finished = sorted({*known["finished"], name})
    write_json_atomically(record, {**known, "finished": finished})


def _made(name: str, tracking: Tracking, run: str | None) -> GeneralTracker:
    """Return a tracker that is not started, which goes on with a run of its own if there is one."""
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "wandb":
        import wandb

        mode = None if "WANDB_MODE" in os.environ or _is_logged_in() else "offline"
        again = {} if run is None else {"id": run, "resume": "allow"}
        return kind(
            _PROJECT, name=tracking.name, group=tracking.group, mode=mode,
            # What it says of one run is of use; of many it would be pages.
            settings=wandb.Settings(silent=tracking.group is not None),
            # It would write into the working directory.
            dir=os.environ.get("WANDB_DIR", str(tracking.folder)), **again,
        )  # fmt: skip
    if name == "mlflow":
        if "MLFLOW_TRACKING_URI" not in os.environ:
            import mlflow

            mlflow.set_tracking_uri(f"sqlite:///{tracking.folder.resolve() / 'mlflow.db'}")
        return kind(tracking.group or _PROJECT, run_name=tracking.name, run_id=run)
    if kind.requires_logging_directory:
        return kind(tracking.place.name, str(tracking.folder))
    return kind(_PROJECT)


@lru_cache
def _is_logged_in() -> bool:
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _known(record: Path) -> dict[str, Any]:
    """Return what is recorded of a run's trackers; as of a new one where that is damaged."""
    with suppress(DeltafitError):
        return dict(read_json(record))
    return {"runs": {}, "finished": []}


def numbers_in(content: Mapping[str, Any]) -> dict[str, int | float]:
    """Return those values that are numbers, which is what trackers take."""
    return {
        key: value
        for key, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names, with the plain values that trackers take."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return result
