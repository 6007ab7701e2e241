"""What ``run`` would do: the runs of a recipe, which are finished, and what the others take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from deltafit.data import Splits
from deltafit.errors import DeltafitError, TrainingError, UsageError
from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe import Recipe
from deltafit.experiments.recipe_start import Prepared, check_runs, prepared
from deltafit.experiments.tuning import check_search, possible_runs, trials_done
from deltafit.training.config import RunConfig
from deltafit.training.foretelling import Foretold, foretell
from deltafit.training.interruption import Interrupted
from deltafit.training.joined_run import groups_to_join
from deltafit.training.progress import Reporter, Silent

_NO_COST = ("alpha", "scaling")  # of a method
_NO_COST_SETTINGS = (
    *("learning_rate", "head_learning_rate", "weight_decay", "schedule", "warmup"),
    *("label_smoothing", "class_weights", "clip", "metric", "seed"),
)


@dataclass(frozen=True)
class PlannedArm:
    """A row of a recipe before its runs are done.

    Attributes:
        arm: the row.
        runs: how many it has: one a seed, and the trials of its search, which are at most so many.
        finished: how many of them are, those that failed or were pruned among them.
        memory: bytes that one of the others will need, by part; None if there is none, or that is
            not known.
        seconds: what training the others will take, one by one, as runs of the same size in the
            store took, or else roughly; None if it is not known. With a search as if all trials
            were trained to their end.
        roughly: whether it is from one forward pass; see ``foretell``.
        space: what its search goes through, in words; empty where there is none.
    """

    arm: Arm
    runs: int
    finished: int
    memory: dict[str, int] | None
    seconds: float | None
    roughly: bool = False
    space: str = ""


@dataclass(frozen=True)
class Plan:
    """What ``run`` would do.

    Attributes:
        recipe: what is asked for.
        arms: its rows.
        problem: why it is not known what memory and time runs will need, if it is not of some.
    """

    recipe: Recipe
    arms: tuple[PlannedArm, ...]
    problem: str | None = None

    @property
    def runs(self) -> int:
        """How many runs it has."""
        return sum(arm.runs for arm in self.arms)

    @property
    def finished(self) -> int:
        """How many of them are finished."""
        return sum(arm.finished for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """What training the others takes; None if it is not known of a row."""
        known = [arm.seconds for arm in self.arms if arm.seconds is not None]
        return sum(known) if len(known) == len(self.arms) else None


def dry_run(
    recipe: str | Path | Recipe,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    jointly: bool = False,
    reporter: Reporter | None = None,
) -> Plan:
    """Return what ``run`` would do with the same arguments; nothing is written.

    Raises:
        DeltafitError: as ``run``, as far as it shows before training; not that the model cannot be
            loaded here, which the plan says.
        Interrupted: the person asked to stop.
    """
    made = prepared(recipe, output, overrides)
    try:
        made.store.base  # noqa: B018  # which runs are finished is not known without it
    except DeltafitError as error:
        return Plan(made.recipe, _nothing_known(made), str(error))
    sizes = _Sizes(made, jointly, reporter or Silent())
    try:
        check_search(made)
        check_runs(possible_runs(made), jointly=jointly)
    except (UsageError, Interrupted):
        raise
    except DeltafitError as error:
        return Plan(made.recipe, _planned(made, sizes, tried=False), str(error))
    arms = _with_trials(made, _planned(made, sizes), sizes)
    return Plan(made.recipe, arms, sizes.problem)


def _nothing_known(made: Prepared) -> tuple[PlannedArm, ...]:
    runs = len(made.experiment.seeds)
    return tuple(PlannedArm(arm, runs, 0, None, None) for arm in made.experiment.arms)


def _planned(made: Prepared, sizes: "_Sizes", *, tried: bool = True) -> tuple[PlannedArm, ...]:
    """Return what is left of each row; what is not in the store is foretold if ``tried``."""
    arms = []
    for arm in made.experiment.arms:
        configs = made.experiment.runs_of(arm)
        left = [config for config in configs if made.store.outcome(config) is None]
        planned = PlannedArm(
            arm, len(configs), len(configs) - len(left), None, None if left else 0.0
        )
        if left:
            found = sizes.foretold(left[0]) if tried else None
            memory = None if found is None else found.memory
            time = sizes.time(left[0], len(left), tried=tried)
            planned = replace(planned, memory=memory, **time)
        arms.append(planned)
    return tuple(arms)


def _with_trials(
    made: Prepared, arms: Sequence[PlannedArm], sizes: "_Sizes"
) -> tuple[PlannedArm, ...]:
    """Return planned rows with the trials of their search, as far as they are in the store."""
    rows = {row.space.row: row for row in trials_done(made)}
    more = replace(made.experiment, seeds=made.experiment.seeds[1:])
    planned = []
    for each in arms:
        row = rows.get(each.arm)
        if row is None or made.recipe.search is None:
            planned.append(each)
            continue
        last = more.runs_of(row.chosen.arm) if row.chosen is not None else []
        finished = len(row.trials) + sum(made.store.outcome(run) is not None for run in last)
        trials = made.recipe.search.trials if row.chosen is None else len(row.trials)
        runs = trials + len(more.seeds)
        planned.append(
            replace(
                each,
                runs=runs,
                finished=finished,
                space=str(row.space),
                **sizes.time(made.experiment.runs_of(each.arm)[0], runs - finished),
            )
        )
    return tuple(planned)


class _Sizes:
    """What runs take, found out once for those that differ in nothing that costs.

    Attributes:
        problem: the first that kept a run's memory and time from being foretold.
    """

    def __init__(self, made: Prepared, jointly: bool, reporter: Reporter) -> None:
        self._splits: Splits = made.splits
        self._reporter = reporter
        self.problem: str | None = None
        self._foretold: dict[str, Foretold | None] = {}
        self._taken: dict[tuple[str, bool], list[float]] = {}
        runs = made.experiment.runs()
        # What a run took by itself is not what it takes beside others.
        self._joined = {run for group in groups_to_join(runs) for run in group} if jointly else ()
        for config in runs:
            outcome = made.store.outcome(config)
            if outcome is None or isinstance(outcome, TrainingError):
                continue
            taken = outcome["costs"]["training_seconds"]
            key = (size_of(config), bool(outcome.get("joined")))
            self._taken.setdefault(key, []).append(taken)

    def foretold(self, config: RunConfig) -> Foretold | None:
        """Return what a run of this size takes; None where that cannot be found out."""
        size = size_of(config)
        if size not in self._foretold:
            try:
                self._foretold[size] = foretell(config, self._splits, self._reporter)
            except (UsageError, Interrupted):
                raise
            except DeltafitError as error:
                self._foretold[size] = None
                self.problem = self.problem or str(error)
        return self._foretold[size]

    def time(self, config: RunConfig, count: int, *, tried: bool = True) -> dict[str, Any]:
        """Return the seconds of so many runs of this size, and whether that is roughly."""
        taken = self._taken.get((size_of(config), config in self._joined))
        if taken is not None or not count:
            return {"seconds": fmean(taken or [0.0]) * count, "roughly": False}
        found = self.foretold(config) if tried else None
        seconds = None if found is None else found.seconds * count
        return {"seconds": seconds, "roughly": seconds is not None}


def size_of(config: RunConfig) -> str:
    """Return a text that runs share which differ in nothing that costs."""
    method = {k: v for k, v in config.method.to_dict().items() if k not in _NO_COST}
    settings: dict[str, Any] = asdict(config.settings)
    return str((method, {k: v for k, v in settings.items() if k not in _NO_COST_SETTINGS}))
