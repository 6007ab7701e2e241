"""``estimate``: what the runs of a recipe will take, found out from a few steps of each kind."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltafit.experiments.arms import Arm, Experiment
from deltafit.experiments.dry_run import size_of
from deltafit.experiments.recipe import Recipe, experiment_of
from deltafit.experiments.recipe_start import check_runs, recipe_of
from deltafit.experiments.running import start_of
from deltafit.experiments.search_space import spaces_of
from deltafit.training.config import RunConfig
from deltafit.training.cost_law import Span, total
from deltafit.training.estimating import BEFORE, RunEstimate, estimate_of, features_of
from deltafit.training.joined_run import groups_to_join
from deltafit.training.own_process import in_own_process
from deltafit.training.progress import Reporter, Silent
from deltafit.training.trial import Trial, try_jointly, try_run


@dataclass(frozen=True)
class EstimatedRow:
    """What the runs of a row take, or those of several rows that are trained jointly.

    Attributes:
        name: of the row, or of all of them.
        runs: how many there are; of a row that is searched for at most, all its trials among them.
        jointly: whether they are trained at once; the estimate is then of all of them.
        estimate: of one run.
    """

    name: str
    runs: int
    jointly: bool
    estimate: RunEstimate

    @property
    def training(self) -> Span | None:
        """What training one run takes; None where it could not be tried."""
        return None if self.estimate.problem else self.estimate.training

    @property
    def whole(self) -> Span | None:
        """What all its runs take; None where they could not be tried."""
        if self.estimate.problem:
            return None
        return self.estimate.whole.times(1 if self.jointly else self.runs)


@dataclass(frozen=True)
class Estimate:
    """What the runs of a recipe will take.

    Attributes:
        recipe: what is asked for.
        rows: of the table.
        baselines: the frozen model's features of all texts, which the cheap baselines of ``run``
            read; the rest of those is not foretold. None where no row could be tried.
        whole: all runs one after another and the baselines, without what runs have in common
            and is done once; None where a row could not be tried.
    """

    recipe: Recipe
    rows: tuple[EstimatedRow, ...]
    baselines: Span | None
    whole: Span | None

    @property
    def memory(self) -> int:
        """Bytes of the run that holds the most."""
        return max(row.estimate.memory for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; times are in seconds, None where they are not known."""
        rows = [
            {
                **asdict(row),
                "training": _values(row.training),
                "whole": _values(row.whole),
            }
            for row in self.rows
        ]
        return {
            "recipe": self.recipe.name,
            "rows": rows,
            "baselines": _values(self.baselines),
            "whole": _values(self.whole),
            "memory": self.memory,
        }


def estimate(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    jointly: bool = False,
    reporter: Reporter | None = None,
) -> Estimate:
    """Return what the runs of a recipe will take: parameters, memory and time.

    Some steps are trained of each run that differs from the others in what it costs, each in a
    process of its own that is thrown away; nothing is written. Those processes import the calling
    script, so that its own work has to stand under ``if __name__ == "__main__":``.

    Args:
        recipe: a YAML file, or the recipe itself.
        overrides: what is otherwise than in the file, such as ``"model=minilm"``.
        jointly: as ``run`` would do them.
        reporter: told what is being tried; silent by default.

    Raises:
        DeltafitError: the input cannot be used, or a run fails in its first steps.
        UsageError: the recipe or an override is wrong, or a method does not fit the model.
    """
    reporter, read = reporter or Silent(), recipe_of(recipe, overrides)
    experiment = experiment_of(read)
    configs = experiment.runs()
    check_runs(configs, jointly=jointly)
    groups = groups_to_join(configs) if jointly else []
    more = _further_trials(read, experiment)
    trials = _Trials(reporter)
    rows, joined = [], {config for group in groups for config in group}
    for group in groups:
        together = [arm.name for arm in experiment.arms if {*experiment.runs_of(arm)} & {*group}]
        found = estimate_of(trials.jointly(group), group)
        rows.append(EstimatedRow(", ".join(together), len(group), True, found))
    for arm in experiment.arms:
        own = [config for config in experiment.runs_of(arm) if config not in joined]
        if own:
            found = estimate_of(trials.alone(own[0]), own[:1])
            rows.append(EstimatedRow(arm.name, len(own) + more.get(arm, 0), False, found))
    baselines = trials.features()
    known = [each for each in (baselines, *(row.whole for row in rows)) if each is not None]
    if len(known) <= len(rows):
        return Estimate(read, tuple(rows), baselines, None)
    # The untouched model is judged once for all runs that start alike.
    alone = [config for config in configs if config not in joined]
    judged = [row.estimate.parts[BEFORE] for row in rows if not row.jointly]
    spared = len(alone) + sum(more.values()) - len({start_of(config) for config in alone})
    mean = total(judged).times(1 / len(judged)) if judged else Span()
    return Estimate(read, tuple(rows), baselines, total(known) + mean.times(-spared))


def _values(span: Span | None) -> dict[str, float] | None:
    return None if span is None else asdict(span)


def _further_trials(recipe: Recipe, experiment: Experiment) -> dict[Arm, int]:
    """Return how many runs a search adds to each row that it tunes, at most."""
    spaces = spaces_of(recipe, experiment.arms)
    search = recipe.search
    return {space.row: search.trials - 1 for space in spaces if search and space.settings}


class _Trials:
    """Trials, each done once for all runs that differ in nothing that costs."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._done: dict[str, Trial] = {}

    def alone(self, config: RunConfig) -> Trial:
        key = size_of(config)
        if key not in self._done:
            self._reporter.say(f"Trying some steps of {config.method}.")
            self._done[key] = in_own_process(try_run, config)
        return self._done[key]

    def jointly(self, configs: Sequence[RunConfig]) -> Trial:
        self._reporter.say(f"Trying some steps of {len(configs)} runs at once.")
        found = in_own_process(try_jointly, configs)
        return self._done.setdefault(str(configs), found)

    def features(self) -> Span | None:
        """Return what the frozen model's features take, by whichever trial knows."""
        known = (features_of(trial) for trial in self._done.values() if trial.problem is None)
        return next(known, None)
