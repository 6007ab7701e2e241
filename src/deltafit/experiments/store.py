"""Where the runs of recipes live: each under a hash of all that decides it, and done once.

The layout is plain::

    STORE/
      runs/<16 digits>/       a run's folder as ``train`` leaves it, or ``failure.json``
      baselines/<16 digits>/  what the cheap baselines said of the judged rows
      locks/                  empty files; the system frees the lock of a process that is killed
      <recipe's name>/        its report, made anew each time

The digits are the first of `deltafit.training.identity.address`. Nothing else is written down about
runs, so deleting a folder is all that it takes to have one done again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from deltafit.data import Splits
from deltafit.errors import DeltafitError, DiskFullError, TrainingError
from deltafit.experiments.baselines import Scored
from deltafit.experiments.running import Outcome
from deltafit.experiments.tracked import TrackedRuns
from deltafit.files import (
    check_run_folder,
    read_json,
    read_tensors,
    write_folder_atomically,
    write_json_atomically,
    write_tensors_atomically,
)
from deltafit.training.accelerator import agreed, processes
from deltafit.training.checkpoints import latest_state
from deltafit.training.config import RunConfig
from deltafit.training.course import Course
from deltafit.training.folders import RUN_FILE, begun, finished_metrics
from deltafit.training.identity import address, model_hash, run_content
from deltafit.training.tracking import Tracking

FAILURE_FILE = "failure.json"
_DIGITS = 16
_BETWEEN_TRIES = 0.5  # seconds, for the lock of another process
_ROWS_FILE, _SCORES_FILE = "baselines.json", "scores.safetensors"


class Store:
    """The runs on one model and the same texts in a store; several processes may share it.

    Of processes that were launched together, to do each run together, the main one locks, decides
    and writes for all.

    Args:
        root: the store's folder, made when something is written.
        model: path, catalogue name or hub name.
        splits: the texts.
        tracked: what follows the runs; nothing by default.

    Raises:
        UsageError: ``root`` is a file.
    """

    resume = True

    def __init__(
        self, root: Path, model: str, splits: Splits, tracked: TrackedRuns | None = None
    ) -> None:
        check_run_folder(root, resume=True)
        self.tracked = tracked or TrackedRuns((), root, "", {})
        self.root, self._splits, self._model = root, splits, model
        self._texts = splits.content_hashes()

    @cached_property
    def base(self) -> str:
        """What tells the model apart; every address begins with it.

        Raises:
            DeltafitError: there is no such model, or the hub does not give it.
        """
        return model_hash(self._model)

    def folder(self, config: RunConfig) -> Path:
        """Return a run's folder, which need not exist."""
        return self.root / "runs" / self._address(config)

    def tracking(self, config: RunConfig) -> Tracking:
        """Return what follows a run."""
        return self.tracked.of(config)

    def outcome(self, config: RunConfig) -> Outcome | None:
        """Return what a run came to; None while it is not finished.

        Raises:
            DeltafitError: what it left is damaged.
        """
        folder = self.folder(config)
        with _said_of(folder):
            metrics = finished_metrics(folder)
            if metrics is None and (folder / FAILURE_FILE).is_file():
                return TrainingError(str(read_json(folder / FAILURE_FILE)["failure"]))
            return metrics

    def course(self, config: RunConfig) -> Course | None:
        """Return where a run that is not finished stands; None before its first checkpoint."""
        state = latest_state(self.folder(config) / "checkpoints")
        return None if state is None else Course(**state["course"])

    def is_finished(self, config: RunConfig) -> bool:
        """Return whether a run is; processes launched together have to ask together.

        Raises:
            DeltafitError: what it left is damaged.
        """
        return agreed(self.outcome(config) is not None)

    @contextmanager
    def begun(self, config: RunConfig, *, wait: bool) -> Iterator[bool]:
        """Begin a run, or go on with it, for the time of the block; see `RunFolders`."""
        if self.is_finished(config):
            yield True
            return
        with self.locked(self._address(config), wait=wait) as ours:
            if ours and not self.is_finished(config):
                folder = self.folder(config)
                if processes().is_main_process:
                    _tidy(folder)
                content = run_content(config, self._splits)
                # Its address says that it is the same run, wherever model and texts lie by now.
                moved = ("config", "data")
                with ExitStack() as stack:
                    with _said_of(folder):
                        run = begun(folder, content, resume=True, may_change=moved)
                        stack.enter_context(run)
                    yield True
            else:
                yield ours

    def failed(self, config: RunConfig, error: TrainingError) -> None:
        """Keep why a run's training failed: it would do so again."""
        if processes().is_main_process:
            write_json_atomically(self.folder(config) / FAILURE_FILE, {"failure": error.what})

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Keep other processes from what goes by a name; return whether they are kept from it."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        if processes().is_main_process:
            with suppress(Timeout):
                lock.acquire(timeout=-1 if wait else 0, poll_interval=_BETWEEN_TRIES)
        try:
            yield agreed(lock.is_locked)
        finally:
            lock.release()

    def baselines(
        self, judged: str, max_length: int, seed: int, score: Callable[[], Sequence[Scored]]
    ) -> Sequence[Scored]:
        """Return what the cheap baselines said, scored once.

        Args:
            judged: the part.
            max_length: tokens that the frozen features are of.
            seed: of the baselines.
            score: scores them.
        """
        asked = json.dumps([self.base, self._texts, judged, max_length, seed], sort_keys=True)
        name = hashlib.sha256(asked.encode()).hexdigest()[:_DIGITS]
        folder = self.root / "baselines" / name
        with self.locked(f"baselines-{name}"):
            if processes().is_main_process and not folder.is_dir():
                _write_scored(folder, score())
            processes().wait_for_everyone()
            with _said_of(folder):
                return _read_scored(folder)

    def _address(self, config: RunConfig) -> str:
        return address(config, self.base, self._texts)[:_DIGITS]


def _tidy(folder: Path) -> None:
    """Remove what a process that was killed left half written."""
    if folder.is_dir() and not (folder / RUN_FILE).is_file():
        shutil.rmtree(folder)
    for pattern in (".*.part", ".*.old"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def _said_of(folder: Path) -> Iterator[None]:
    """Say of what is damaged how to get it anew."""
    try:
        yield
    except DiskFullError:
        raise
    except (DeltafitError, KeyError, TypeError) as error:
        what = str(error) if isinstance(error, DeltafitError) else f"{folder} is damaged."
        raise DeltafitError(f"{what} Delete {folder}, and it is done again.") from error


def _write_scored(folder: Path, scored: Sequence[Scored]) -> None:
    with write_folder_atomically(folder) as temporary:
        tensors = {str(number): torch.from_numpy(each.scores) for number, each in enumerate(scored)}
        write_tensors_atomically(temporary / _SCORES_FILE, tensors)
        content = [
            {key: getattr(each, key) for key in ("name", "result_name", "seconds", "notes")}
            for each in scored
        ]
        write_json_atomically(temporary / _ROWS_FILE, content)


def _read_scored(folder: Path) -> list[Scored]:
    tensors = read_tensors(folder / _SCORES_FILE)
    return [
        Scored(
            each["name"], each["result_name"], tensors[str(number)].numpy(), each["seconds"],
            tuple(each["notes"]),
        )
        for number, each in enumerate(read_json(folder / _ROWS_FILE))
    ]  # fmt: skip
