"""Where the runs of an experiment stand while they are done, as their folders have it.

Whoever does them, in this process or another one, one by one or jointly, leaves the same files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from deltafit.errors import DeltafitError, TrainingError
from deltafit.experiments.arms import Experiment
from deltafit.experiments.running import Outcome, RunFolders
from deltafit.tasks.metrics import find_metric
from deltafit.training.config import RunConfig
from deltafit.training.noting import Note, noted

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class RunStanding:
    """Where one run stands.

    Attributes:
        name: its row's, with its seed if there are several.
        state: of the run.
        note: where the work on a running one stands.
        validation: a finished run's figure; None without such rows.
        test: the same.
    """

    name: str
    state: State
    note: Note | None = None
    validation: float | None = None
    test: float | None = None


@dataclass(frozen=True)
class Overview:
    """Where all runs stand.

    Attributes:
        runs: in the experiment's order.
        metric: what their figures are.
        best: the finished run with the best validation figure; None if there is none.
        seconds_left: until all are trained, as far as can be told from those that are; never while
            trials go on.
        trials: of a search, that go on besides.
    """

    runs: tuple[RunStanding, ...]
    metric: str
    best: RunStanding | None
    seconds_left: float | None
    trials: tuple[RunStanding, ...] = ()

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)


class Standing:
    """The runs of an experiment, to be looked at while they are done.

    Args:
        experiment: its runs.
        folders: where they are.
        processes: how many do one run at a time each, at least; on a cluster it is seen from the
            runs that go on.
        trials: gives those of a search that go on.
    """

    def __init__(
        self,
        experiment: Experiment,
        folders: RunFolders,
        processes: int = 1,
        trials: Callable[[], Iterable[RunStanding]] = tuple,
    ) -> None:
        self._trials = trials
        self._folders, self._processes, self._names = folders, processes, experiment.names()
        self._places = {config: folders.folder(config) for config in self._names}
        self._rows = {
            config: arm.name for arm in experiment.arms for config in experiment.runs_of(arm)
        }
        self._outcomes: dict[RunConfig, Outcome] = {}
        asked = {config.settings.metric for config in self._names}
        self.metric = asked.pop() if len(asked) == 1 else "accuracy"

    def look(self) -> Overview:
        """Return where the runs stand now."""
        runs = {config: self._look_at(config) for config in self._names}
        figures = [run for run in runs.values() if run.validation is not None]
        sign = 1 if find_metric(self.metric).higher_is_better else -1
        best = max(figures, key=lambda run: sign * (run.validation or 0.0), default=None)
        trials = tuple(self._trials())
        left = None if trials else self._seconds_left(runs)
        return Overview(tuple(runs.values()), self.metric, best, left, trials)

    def _look_at(self, config: RunConfig) -> RunStanding:
        name = self._names[config]
        if config not in self._outcomes:
            with suppress(DeltafitError):  # what is damaged is told by whoever needs it
                outcome = self._folders.outcome(config)
                if outcome is not None:
                    self._outcomes[config] = outcome
        found = self._outcomes.get(config)
        if isinstance(found, TrainingError):
            return RunStanding(name, "failed")
        if found is not None:
            validation, test = self._figures(found.get("after", {}))
            return RunStanding(name, "done", validation=validation, test=test)
        note = noted(self._places[config])
        return RunStanding(name, "waiting" if note is None else "running", note)

    def _figures(self, after: Mapping[str, Any]) -> Iterator[float | None]:
        key = find_metric(self.metric).key
        return (after.get(part, {}).get(key) for part in ("validation", "test"))

    def _seconds_left(self, runs: Mapping[RunConfig, RunStanding]) -> float | None:
        """Return what training takes yet: runs that wait take what those of their row took."""
        taken = {
            config: float(outcome["costs"]["training_seconds"])
            for config, outcome in self._outcomes.items()
            if not isinstance(outcome, TrainingError)
        }
        going: list[float] = []
        waiting: list[float] = []
        for config, run in runs.items():
            left = None if run.note is None else run.note.training_seconds_left
            if left is not None:
                going.append(left)
            elif run.state in ("running", "waiting") and not (run.note and run.note.trained):
                row = self._rows[config]
                alike = [taken[other] for other in taken if self._rows[other] == row]
                known = alike or [*taken.values()]
                if not known:
                    return None
                waiting.append(fmean(known))
        at_work = {(run.note.host, run.note.process) for run in runs.values() if run.note}
        return _shared_out(going, waiting, max(self._processes, len(at_work)))


def _shared_out(going: Sequence[float], waiting: Sequence[float], processes: int) -> float:
    """Return when all is done: one process does what goes on at once, and then one by one."""
    longest = max(going, default=0.0)
    if processes == 1:
        return longest + sum(waiting)
    return max(longest, (sum(going) + sum(waiting)) / processes)
