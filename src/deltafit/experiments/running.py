"""Doing runs in their folders, one after another or jointly, each only once."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from deltafit.data import Splits
from deltafit.errors import TrainingError
from deltafit.training.config import RunConfig
from deltafit.training.features import FrozenFeatures
from deltafit.training.loop import Halt
from deltafit.training.noting import Noting
from deltafit.training.progress import Reporter
from deltafit.training.run import execute
from deltafit.training.tracking import Tracking

Outcome = dict[str, Any] | TrainingError
"""A run's metrics, or why its training failed."""

Before = dict[tuple[object, ...], dict[str, Any]]
"""The untouched model's metrics, by what they depend on among runs of one experiment."""


class RunFolders(Protocol):
    """Where runs live, and whether this process may do them."""

    @property
    def resume(self) -> bool:
        """Whether runs that were begun are gone on with."""

    def folder(self, config: RunConfig) -> Path:
        """Return a run's folder, which need not exist."""

    def tracking(self, config: RunConfig) -> Tracking:
        """Return what follows a run."""

    def outcome(self, config: RunConfig) -> Outcome | None:
        """Return what a run came to; None while it is not finished.

        Raises:
            DeltafitError: what it left is damaged.
        """

    def begun(self, config: RunConfig, *, wait: bool) -> AbstractContextManager[bool]:
        """Begin a run, or go on with it, for the time of the block.

        Args:
            config: the run.
            wait: for another process that is at it.

        Returns:
            Whether it is this process's to do; never False if it waited.
        """

    def failed(self, config: RunConfig, error: TrainingError) -> None:
        """Learn that a run's training failed; called within ``begun``."""


class SharedFeatures:
    """Frozen features for the runs of an experiment, which may cut texts to different lengths.

    Args:
        model: path, catalogue name or hub name.
        splits: the texts.
        reporter: told how the work goes.
    """

    def __init__(self, model: str, splits: Splits, reporter: Reporter) -> None:
        self._what = (model, splits, reporter)
        self._made: dict[int, FrozenFeatures] = {}

    def of(self, config: RunConfig) -> FrozenFeatures:
        """Return those that a run starts from; they are computed when asked for."""
        length = config.settings.max_length
        if length not in self._made:
            model, splits, reporter = self._what
            made = FrozenFeatures(model, splits, length, reporter)
            for other in self._made.values():
                made.states = other.states  # whose limits hold for all together
            self._made[length] = made
        return self._made[length]


def do_runs(
    configs: Sequence[RunConfig],
    splits: Splits,
    folders: RunFolders,
    features: SharedFeatures,
    reporter: Reporter,
    *,
    known: Mapping[RunConfig, Outcome] = MappingProxyType({}),
    wait: bool = True,
) -> dict[RunConfig, Outcome]:
    """Do every run that is not finished, one after another; return what each came to.

    Runs that another process is at are left to the end, and waited for there.

    Args:
        configs: the runs, of one model, texts and head.
        splits: the texts.
        folders: of the runs.
        features: of the same texts.
        reporter: told how the work goes.
        known: what some of them came to already.
        wait: whether to wait for runs that other processes do; those are missing otherwise.
    """
    outcomes: dict[RunConfig, Outcome] = {}
    before: Before = {}
    for config in known:
        outcomes[config] = _told(config, known[config], reporter, before)
    for waits in (False, True) if wait else (False,):
        if waits and len(outcomes) < len(configs):
            reporter.say("Waiting for runs that another process is at.")
        for number, config in enumerate(configs, start=1):
            if config in outcomes:
                continue
            counted = f"run {number} of {len(configs)}"
            outcome = do_run(
                config, splits, folders, features, reporter, before, wait=waits, counted=counted
            )
            if outcome is not None:
                outcomes[config] = outcome
    return outcomes


def do_run(
    config: RunConfig,
    splits: Splits,
    folders: RunFolders,
    features: SharedFeatures,
    reporter: Reporter,
    before: Before,
    *,
    wait: bool,
    counted: str,
    halt: Halt | None = None,
) -> Outcome | None:
    """Return what a run came to, finished already or executed now; None if others are at it.

    Every method starts from the same untouched model, so that is measured once, but for those
    that leave texts fewer tokens.

    Args:
        config: the run.
        splits: the texts.
        folders: of the runs.
        features: of the same texts.
        reporter: told how the work goes.
        before: metrics of the untouched model as far as earlier runs had them measured; added to.
        wait: for another process that is at it.
        counted: which run it is, in words.
        halt: asked after each evaluation but the last whether to leave the run unfinished.

    Raises:
        Halted: ``halt`` said so.
    """
    with folders.begun(config, wait=wait) as ours:
        if not ours:
            return None
        outcome = folders.outcome(config)
        if outcome is None:
            reporter.say(f"{config.label} ({counted})")
            folder = folders.folder(config)
            try:
                outcome = execute(
                    config, splits, folder,
                    reporter=Noting(reporter, folder), resume=folders.resume,
                    features=features.of(config), before=before.get(start_of(config)),
                    tracking=folders.tracking(config), halt=halt,
                ).metrics  # fmt: skip
            except TrainingError as error:
                folders.failed(config, error)
                outcome = error
    return _told(config, outcome, reporter, before)


def _told(config: RunConfig, outcome: Outcome, reporter: Reporter, before: Before) -> Outcome:
    """Return the outcome, its failure told or its metrics before training remembered."""
    if isinstance(outcome, TrainingError):
        reporter.say(f"{config.label} {outcome.what}")
    else:
        before[start_of(config)] = outcome["before"]
    return outcome


def start_of(config: RunConfig) -> tuple[object, ...]:
    """Return what decides the metrics before training among runs of one experiment."""
    settings, method = config.settings, config.method
    shared = (settings.max_length, settings.base_weights, settings.judge_training)
    return settings.seed, method.taken_positions, *shared
