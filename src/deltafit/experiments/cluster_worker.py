"""A worker of a Ray cluster: it does one run of a recipe after another, as Ray gives them to it."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deltafit.errors import DeltafitError
from deltafit.experiments.recipe import Recipe
from deltafit.experiments.recipe_start import Prepared, prepared
from deltafit.experiments.running import Before, SharedFeatures, do_run
from deltafit.training.interruption import Interrupted
from deltafit.training.progress import Reporter, Telling


@dataclass(frozen=True)
class Job:
    """What workers are told of the runs of one command.

    Attributes:
        recipe: its runs.
        root: of the store.
        started_in: the folder from which relative paths are seen.
        lock: a name in the store that the command keeps locked.
        places: names of the runs' folders.
        threads: for each run.
    """

    recipe: Recipe
    root: Path
    started_in: Path
    lock: str
    places: tuple[str, ...]
    threads: int


@dataclass
class _Opened:
    """What the runs of a job share in one worker."""

    made: Prepared
    features: SharedFeatures
    before: Before = field(default_factory=dict)


class Refused(NamedTuple):
    """Why a worker cannot do a run, and others could not either."""

    sentence: str


_opened: dict[str, _Opened] = {}
"""What this worker has read, by the job's lock; of one job at a time."""


def do_task(job: Job, number: int, said: Any, *, wait: bool) -> bool | Refused:
    """Do a run in a worker; return whether it has ended, which it has not if others are at it."""
    from ray.exceptions import RayError

    torch.set_num_threads(job.threads)
    who = f"{socket.gethostname()} {os.getpid()}"
    reporter = Telling(lambda sentence: said.put((who, sentence)), RayError)
    try:
        if job.lock not in _opened:
            _opened.clear()
            _opened[job.lock] = _open(job, reporter)
        opened = _opened[job.lock]
        configs = opened.made.experiment.runs()
        outcome = do_run(
            configs[number], opened.made.splits, opened.made.store, opened.features, reporter,
            opened.before, wait=wait, counted=f"run {number + 1} of {len(configs)}",
        )  # fmt: skip
    except Interrupted:
        raise
    except DeltafitError as error:
        return Refused(f"On the worker {socket.gethostname()}: {error}")
    return outcome is not None


def _open(job: Job, reporter: Reporter) -> _Opened:
    """Read the recipe's texts in a worker.

    Raises:
        DeltafitError: the store, the texts or the model here are not those of the command.
    """
    with suppress(OSError):  # relative paths will be missed, if there are any
        os.chdir(job.started_in)
    unseen = (
        f"it does not see the store {job.root} as the machine does that the command runs on. "
        "Every node of the cluster has to reach the store under this path, in a file system that "
        "they share and whose locks hold for all of them."
    )
    if not (job.root / "locks" / f"{job.lock}.lock").is_file():
        raise DeltafitError(unseen)
    made = prepared(job.recipe, job.root, ())
    with made.store.locked(job.lock, wait=False) as free:
        if free:
            raise DeltafitError(unseen)
    if tuple(made.store.folder(config).name for config in made.experiment.runs()) != job.places:
        raise DeltafitError(
            "the texts or the model there are others than on the machine that the command runs on, "
            "or its deltafit is another. Give all nodes the same."
        )
    return _Opened(made, SharedFeatures(made.recipe.model, made.splits, reporter))
