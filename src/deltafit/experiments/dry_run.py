"""What ``run`` would do: the runs of a recipe, which are finished, and what the others take."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from deltafit.adapters.structure import is_matrix, layer_shape
from deltafit.data import Splits
from deltafit.errors import DeltafitError, TrainingError, UsageError
from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe import Recipe
from deltafit.experiments.recipe_start import Prepared, check_runs, prepared
from deltafit.experiments.tuning import check_search, possible_runs, trials_done
from deltafit.tasks.inference import BATCH_TOKENS
from deltafit.training.config import RunConfig
from deltafit.training.estimating import estimate_of
from deltafit.training.interruption import Interrupted
from deltafit.training.preparation import structure_of
from deltafit.training.progress import Reporter, Silent
from deltafit.training.run import foretell_memory
from deltafit.training.trial import try_run
from deltafit.training.trial_steps import QUICK_STEPS

# Multiplications of all trials together that are soon done: some sixty seconds on one slow core.
_CHEAP = 3e12
_CHARACTERS = 4  # in a token, in round numbers
_NO_COST = ("alpha", "scaling")  # of a method
_RANK = ("rank", "initial_rank")  # which costs little beside the frozen products
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
        seconds: what training the others will take, as runs of the same size in the store took;
            or from a few steps of the largest rank of their method, where trying those is cheap;
            None if it is not known. With a search as if all trials were trained to their end.
        tried: whether it is from a few steps.
        space: what its search goes through, in words; empty where there is none.
    """

    arm: Arm
    runs: int
    finished: int
    memory: dict[str, int] | None
    seconds: float | None
    tried: bool = False
    space: str = ""


@dataclass(frozen=True)
class Plan:
    """What ``run`` would do.

    Attributes:
        recipe: what is asked for.
        arms: its rows.
        problem: why it is not known what memory the runs will need, if it is not.
        jointly: whether runs are to be trained at once; what that takes is not known then.
    """

    recipe: Recipe
    arms: tuple[PlannedArm, ...]
    problem: str | None = None
    jointly: bool = False

    @property
    def runs(self) -> int:
        """How many runs it has."""
        return sum(arm.runs for arm in self.arms)

    @property
    def finished(self) -> int:
        """How many of them are finished."""
        return sum(arm.finished for arm in self.arms)


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
        return Plan(made.recipe, _nothing_known(made), str(error), jointly)
    reporter = reporter or Silent()
    sizes = _Sizes(made, reporter)
    # What runs took one by one, or do in a trial, is not what they take together.
    seconds = _unknown if jointly else sizes.seconds
    try:
        check_search(made)
        check_runs(possible_runs(made), jointly=jointly)
        arms = _with_trials(made, _planned(made, seconds, sizes.memory), seconds)
        arms = arms if jointly else _with_tried(made, arms, reporter)
        return Plan(made.recipe, arms, jointly=jointly)
    except (UsageError, Interrupted):
        raise
    except DeltafitError as error:
        return Plan(made.recipe, _planned(made, seconds, _unknown), str(error), jointly)


def _unknown(_: RunConfig) -> None:
    return None


def _nothing_known(made: Prepared) -> tuple[PlannedArm, ...]:
    runs = len(made.experiment.seeds)
    return tuple(PlannedArm(arm, runs, 0, None, None) for arm in made.experiment.arms)


def _planned(
    made: Prepared,
    seconds_of: Callable[[RunConfig], float | None],
    memory: Callable[[RunConfig], dict[str, int] | None],
) -> tuple[PlannedArm, ...]:
    arms = []
    for arm in made.experiment.arms:
        configs = made.experiment.runs_of(arm)
        left = [config for config in configs if made.store.outcome(config) is None]
        seconds = seconds_of(left[0]) if left else 0.0
        arms.append(
            PlannedArm(
                arm,
                runs=len(configs),
                finished=len(configs) - len(left),
                memory=memory(left[0]) if left else None,
                seconds=None if seconds is None else seconds * len(left),
            )
        )
    return tuple(arms)


def _with_trials(
    made: Prepared,
    arms: Sequence[PlannedArm],
    seconds_of: Callable[[RunConfig], float | None],
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
        seconds = seconds_of(made.experiment.runs_of(each.arm)[0])
        planned.append(
            replace(
                each,
                runs=runs,
                finished=finished,
                seconds=None if seconds is None else seconds * (runs - finished),
                space=str(row.space),
            )
        )
    return tuple(planned)


def _with_tried(
    made: Prepared, arms: Sequence[PlannedArm], reporter: Reporter
) -> tuple[PlannedArm, ...]:
    """Fill in times from a few steps of each method, if all of them together are soon done."""
    left = {}
    for each in arms:
        configs = [c for c in made.experiment.runs_of(each.arm) if made.store.outcome(c) is None]
        if each.seconds is None and configs:
            left[each.arm] = configs[0]
    kinds: dict[str, RunConfig] = {}
    for config in sorted(left.values(), key=_rank_of):
        kinds[_kind_of(config)] = config  # at last the largest rank
    structure, _ = structure_of(made.recipe.model, made.recipe.head)
    values = sum(math.prod(layer_shape(m)) for m in structure.modules() if is_matrix(m))
    tokens = sum(_tokens_of_trial(config, made.splits) for config in kinds.values())
    if values * tokens > _CHEAP:
        return tuple(arms)
    # Here, and not in a process of its own: only their time is wanted, and memory is foretold.
    tried = {}
    for kind, config in kinds.items():
        reporter.say(f"Trying some steps of {config.method}.")
        tried[kind] = _seconds_tried(config)

    def seconds_of(arm: Arm) -> float | None:
        return tried[_kind_of(left[arm])]

    return tuple(
        replace(each, seconds=seconds * (each.runs - each.finished), tried=True)
        if each.arm in left and (seconds := seconds_of(each.arm)) is not None
        else each
        for each in arms
    )


def _rank_of(config: RunConfig) -> int:
    return max((getattr(config.method, name, 0) for name in _RANK), default=0)


def _tokens_of_trial(config: RunConfig, splits: Splits) -> float:
    """Return about how many tokens a trial takes forward, or as costly ways backward."""
    characters = fmean(map(len, splits.train.texts[:1000]))
    tokens = min(config.settings.max_length, characters / _CHARACTERS)
    return tokens * 3 * config.settings.rows_per_step * (QUICK_STEPS + 1) + 2 * BATCH_TOKENS


def _seconds_tried(config: RunConfig) -> float | None:
    try:
        trial = try_run(config, quick=True)
    except Interrupted:
        raise
    except DeltafitError:  # which ``run`` will tell
        return None
    return None if trial.problem else estimate_of(trial, [config]).training.seconds


class _Sizes:
    """What runs take, found out once for those that differ in nothing that costs."""

    def __init__(self, made: Prepared, reporter: Reporter) -> None:
        self._splits: Splits = made.splits
        self._reporter = reporter
        self._memory: dict[str, dict[str, int]] = {}
        self._seconds: dict[str, list[float]] = {}
        for config in made.experiment.runs():
            outcome = made.store.outcome(config)
            if outcome is not None and not isinstance(outcome, TrainingError):
                taken = outcome["costs"]["training_seconds"]
                self._seconds.setdefault(size_of(config), []).append(taken)

    def memory(self, config: RunConfig) -> dict[str, int]:
        size = size_of(config)
        if size not in self._memory:
            self._memory[size] = foretell_memory(config, self._splits, self._reporter)
        return self._memory[size]

    def seconds(self, config: RunConfig) -> float | None:
        known = self._seconds.get(size_of(config))
        return None if known is None else fmean(known)


def size_of(config: RunConfig) -> str:
    """Return a text that runs share which differ in nothing that costs."""
    return _size_without(config, _NO_COST)


def _kind_of(config: RunConfig) -> str:
    """Return a text that runs share which differ in their rank alone, or in nothing that costs."""
    return _size_without(config, (*_NO_COST, *_RANK))


def _size_without(config: RunConfig, left_out: Sequence[str]) -> str:
    method = {k: v for k, v in config.method.to_dict().items() if k not in left_out}
    settings: dict[str, Any] = asdict(config.settings)
    return str((method, {k: v for k, v in settings.items() if k not in _NO_COST_SETTINGS}))
