"""The rows of a recipe with a search, each tuned by trials in the recipe's store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deltafit.adapters import trained_values
from deltafit.errors import UsageError
from deltafit.experiments.arms import Arm, Experiment
from deltafit.experiments.recipe_start import Prepared
from deltafit.experiments.running import Before, SharedFeatures, do_run
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import Range, Space, present, spaces_of, written
from deltafit.experiments.tables import PERCENT_METRICS, format_metric
from deltafit.experiments.trials import Came, Run, Trial, best_of, check_optuna, trials_of
from deltafit.methods import Method
from deltafit.tasks.metrics import find_metric
from deltafit.training.accelerator import processes as launched
from deltafit.training.config import RunConfig
from deltafit.training.interruption import Halted
from deltafit.training.loop import Halt
from deltafit.training.preparation import structure_of
from deltafit.training.progress import Reporter


@dataclass(frozen=True)
class TunedRow:
    """A row of a recipe after its search.

    Attributes:
        space: what it was tried with.
        trials: in their order.
        chosen: the one whose settings it has; None if no trial was finished.
    """

    space: Space
    trials: tuple[Trial, ...]
    chosen: Trial | None


@dataclass(frozen=True)
class Tuned:
    """A recipe after its search.

    Attributes:
        experiment: the recipe's, each row with the settings that were chosen for it.
        rows: of those that were searched for.
    """

    experiment: Experiment
    rows: tuple[TunedRow, ...] = ()


def check_search(made: Prepared, engine: str = "here") -> None:
    """Raise a DeltafitError if a recipe's search cannot be made so, before anything is computed."""
    if made.recipe.search is None:
        return
    check_optuna()
    if engine != "here" or launched().num_processes > 1:
        raise UsageError(
            "A search is done by processes of this machine, each with rows of its own: the trials "
            "of a row follow from each other. Start one process, and give --processes for more."
        )
    if made.splits.validation is None:
        raise UsageError(
            "A search chooses by validation rows, and there are none. Leave data.validation at a "
            "share such as 0.1, or name a file."
        )


def possible_runs(made: Prepared) -> list[RunConfig]:
    """Return the runs of a recipe as it is written, and those at the ends of its search's space."""
    arms = [
        arm for space in spaces_of(made.recipe, made.experiment.arms) for arm in space.extremes()
    ]
    runs = made.experiment.runs()
    return [*runs, *(config for arm in arms for config in made.experiment.runs_of(arm)[:1])]


def is_anything_left(made: Prepared) -> bool:
    """Say whether a recipe has trials, or runs of its rows, that are not done."""
    rows = [] if made.recipe.search is None else trials_done(made)
    if any(row.chosen is None for row in rows):
        return True
    return not all(made.store.is_finished(config) for config in _with_chosen(made, rows).runs())


def _with_chosen(made: Prepared, rows: Sequence[TunedRow]) -> Experiment:
    """Return a recipe's experiment, the rows that were searched for with what was chosen."""
    metric = made.recipe.settings.metric
    tuned_arms = {row.space.row: _tuned_arm(row, metric) for row in rows}
    arms = tuple(tuned_arms.get(arm, arm) for arm in made.experiment.arms)
    return replace(made.experiment, arms=arms)


def tuned(
    made: Prepared, features: SharedFeatures, reporter: Reporter, *, wait: bool = True
) -> Tuned:
    """Tune the rows of a recipe, one after another; no trial in the store is done again.

    Args:
        made: the recipe; without a search its experiment comes back as it is.
        features: of its texts.
        reporter: told how the work goes.
        wait: for rows that another process is at; they are left out otherwise.

    Raises:
        DeltafitError: as ``run``.
        Interrupted: the person asked to stop; the same call goes on.
    """
    search = made.recipe.search
    if search is None:
        return Tuned(made.experiment)
    done = _Doing(made, features, reporter)
    arms, rows = [], []
    for space in spaces_of(made.recipe, made.experiment.arms):
        if not space.settings:
            arms.append(space.row)
            continue
        # Whoever comes second would wait for every trial; there may be other rows to do.
        name = f"search-{made.store.folder(trial_run(made, space.row)).name}"
        with made.store.locked(name, wait=wait) as ours:
            if ours:
                row = _row(made, space, done.run_of(space))
                rows.append(row)
                arms.append(_tuned_arm(row, made.recipe.settings.metric))
    return Tuned(replace(made.experiment, arms=tuple(arms)), tuple(rows))


def trials_done(made: Prepared) -> list[TunedRow]:
    """Return the rows as far as their trials are in the store; nothing is trained.

    What is chosen is None in rows whose search is not over.
    """
    missing = False

    def run(arm: Arm, halt: Halt) -> Came | None:
        nonlocal missing
        came = _came(made, trial_run(made, arm))
        over = came is not None and (came.finished or came.failed or halt(came.history))
        missing = not over
        return came if over else None

    rows = []
    for space in spaces_of(made.recipe, made.experiment.arms):
        if space.settings:
            missing = False
            row = _row(made, space, run)
            rows.append(replace(row, chosen=None) if missing else row)
    return rows


def _row(made: Prepared, space: Space, run: Run) -> TunedRow:
    search, metric = made.recipe.search, find_metric(made.recipe.settings.metric)
    assert search is not None
    fits = _small_enough(made, search, space)
    trials = tuple(trials_of(space, search, metric, made.recipe.seeds[0], run, fits))
    return TunedRow(space, trials, best_of(trials, metric))


def _small_enough(made: Prepared, search: Search, space: Space) -> Callable[[Method], bool]:
    most = search.parameters
    if most is None or not space.sizes:
        return lambda _: True
    model, head = structure_of(made.recipe.model, made.recipe.head)
    return lambda method: trained_values(model, method, head=head) <= most


class _Doing:
    """Does trials, which start from the same untouched model."""

    def __init__(self, made: Prepared, features: SharedFeatures, reporter: Reporter) -> None:
        self._made, self._features, self._reporter = made, features, reporter
        self._before: Before = {}

    def run_of(self, space: Space) -> Run:
        """Return what does the trials of a row."""
        assert self._made.recipe.search is not None
        number, most = 0, self._made.recipe.search.trials

        def run(arm: Arm, halt: Halt) -> Came:
            nonlocal number
            number += 1
            chosen = written({name: present(arm, name) for name in space.settings})
            return self._run(arm, halt, f"trial {number} of at most {most}: {chosen}")

        return run

    def _run(self, arm: Arm, halt: Halt, counted: str) -> Came:
        made, config = self._made, trial_run(self._made, arm)
        course = made.store.course(config) if made.store.outcome(config) is None else None
        if course is None or not halt(course.history):
            try:
                do_run(
                    config, made.splits, made.store, self._features, self._reporter, self._before,
                    wait=True, counted=counted, halt=halt,
                )  # fmt: skip
            except Halted as halted:
                self._reporter.say(f"Pruned. {halted}")
        came = _came(made, config)
        assert came is not None, "it was begun"
        return came


def trial_run(made: Prepared, arm: Arm) -> RunConfig:
    """Return the run of a trial: that of a row with the recipe's first seed."""
    return made.experiment.runs_of(arm)[0]


def _came(made: Prepared, config: RunConfig) -> Came | None:
    """Return what is in the store of a run; None if it was not begun."""
    outcome = made.store.outcome(config)
    if isinstance(outcome, dict):
        seconds = outcome["costs"]["training_seconds"]
        return Came(outcome["history"], outcome["best_step"], seconds, finished=True)
    # One that failed was evaluated before, and so has a checkpoint, which says with what figures.
    course = made.store.course(config)
    if course is None:
        return Came([], None, 0.0, finished=False, failed=True) if outcome else None
    return Came(
        course.history, course.best_step, course.seconds, finished=False, failed=outcome is not None
    )


def _tuned_arm(row: TunedRow, metric: str) -> Arm:
    """Return a row with the settings that were chosen, and how they were in its remark."""
    settings = tuple(row.space.settings)
    if row.chosen is None:
        # Its run fails as the trial did, and says why.
        return replace(row.trials[0].arm, searched=settings, trials=len(row.trials))
    arm, (figure, _) = row.chosen.arm, row.chosen.result or (0.0, 0.0)
    unit = " %" if metric in PERCENT_METRICS else ""
    said = [
        f"{written(row.chosen.chosen)}: the best of {len(row.trials)} trials by validation "
        f"{metric.replace('_', ' ')} ({format_metric(figure, metric)}{unit})"
    ]
    for name, values in row.space.settings.items():
        end = values.end_near(row.chosen.chosen[name]) if isinstance(values, Range) else None
        if end is not None:
            said.append(f"{name} is near the {end} end of its range, which may be too narrow")
    remark = "; ".join([*filter(None, [arm.remark]), *said])
    return replace(arm, remark=remark, searched=settings, trials=len(row.trials))
