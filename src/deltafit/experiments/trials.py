"""A search through the space of one row: trials that Optuna proposes and validation rows judge.

Nothing is kept of a search but its runs. The sampler is seeded, so a search is a function of what
its runs came to: to go on with one is to begin it again, and to find its first runs done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.arms import Arm
from deltafit.experiments.halving import Halving
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import Choices, Space
from deltafit.methods import Method
from deltafit.tasks.metrics import Metric
from deltafit.training.loop import Halt

if TYPE_CHECKING:
    import optuna

# Trials before the sampler goes by what came of them; fewer than its usual ten, since a trial is a
# whole run. No share of all, so that a search with more trials begins with those of one with fewer.
_AT_RANDOM = 4
_TRIES = 200  # for one that is new; of a dozen left one would be found in all but 1 of 10⁷ cases


@dataclass(frozen=True)
class Came:
    """What a trial's run came to, or where it stands.

    Attributes:
        history: its evaluations.
        best_step: of the checkpoint that it keeps.
        seconds: of training up to the last evaluation.
        finished: whether it is trained to its end.
        failed: whether its training did.
    """

    history: Sequence[Mapping[str, Any]]
    best_step: int | None
    seconds: float
    finished: bool
    failed: bool = False


@dataclass(frozen=True)
class Trial:
    """A row tried with settings of its space.

    Attributes:
        number: 0 the first.
        arm: the row with them.
        chosen: the settings.
        state: trained to its end, halted by the search, or diverged.
        figures: the metric on validation rows at each evaluation.
        epochs: that it was trained for.
        result: the metric and the log loss of the checkpoint that it keeps; None if not finished.
        seconds: of training.
    """

    number: int
    arm: Arm
    chosen: Mapping[str, Any]
    state: Literal["finished", "pruned", "failed"]
    figures: tuple[float, ...]
    epochs: float
    result: tuple[float, float] | None
    seconds: float


Run = Callable[[Arm, Halt], Came | None]
"""Does the run of a trial as far as ``halt`` lets it; None if it is not to be done now."""


def check_optuna() -> None:
    """Raise a DeltafitError if what proposes trials is not installed."""
    try:
        import optuna  # noqa: F401  # whether it can be imported is all that is asked
    except ImportError as error:
        raise DeltafitError(
            "A recipe with a search takes Optuna, which is not installed. Run "
            "pip install 'deltafit[search]'."
        ) from error


def trials_of(
    space: Space,
    search: Search,
    metric: Metric,
    seed: int,
    run: Run,
    fits: Callable[[Method], bool],
) -> Iterator[Trial]:
    """Yield the trials of a search, each when it is done; the same ones for the same seed.

    The first is the row as it is written, as far as it lies in the space. A search ends early
    when its minutes are spent, or when nothing is left to try.

    Args:
        space: of the row.
        search: how to go through it.
        metric: of the validation rows.
        seed: of the sampler.
        run: does a trial's run.
        fits: whether a method is small enough.

    Raises:
        UsageError: nothing in the space is small enough.
    """
    proposing = _Proposing(space, metric, seed, fits)
    halving = Halving() if search.pruning == "successive-halving" else None
    seconds = 0.0
    for number in range(search.trials):
        if search.minutes is not None and seconds >= 60 * search.minutes:
            return
        proposed = proposing.next()
        if proposed is None and number == 0:
            raise UsageError(
                f"search.parameters: {space.row.name} trains more than {search.parameters:,} "
                "parameters with all that its space holds. Raise it, or search smaller sizes."
            )
        if proposed is None:
            return
        asked, arm, chosen = proposed
        pruning = _Pruning(asked, metric, halving)
        came = run(arm, pruning)
        if came is None:
            return
        trial = _trial(number, arm, chosen, came, pruning, metric)
        proposing.tell(asked, trial)
        if trial.state != "failed":
            pruning.over()
        seconds += trial.seconds
        yield trial


def best_of(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Return the finished trial of the best figure; of equal ones that of the least log loss."""
    sign = 1 if metric.higher_is_better else -1

    def value(trial: Trial) -> tuple[float, float]:
        assert trial.result is not None
        return sign * trial.result[0], -trial.result[1]

    finished = [trial for trial in trials if trial.result is not None]
    return max(finished, key=value, default=None)


class _Pruning:
    """Tells Optuna a run's evaluations one by one, and stands by what halving says of them."""

    def __init__(self, asked: "optuna.Trial", metric: Metric, halving: Halving | None) -> None:
        self._asked, self._metric, self._halving = asked, metric, halving
        self._told: list[float] = []
        self.after: int | None = None  # evaluations

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> bool:
        for entry in history[len(self._told) :]:
            if self.after is not None:
                break
            figure, number = entry[self._metric.key], len(self._told) + 1
            self._asked.report(figure, number)  # the sampler counts how far a pruned trial came
            self._told.append(figure if self._metric.higher_is_better else -figure)
            if self._halving is not None and self._halving.ends(number, self._told[-1]):
                self.after = number
        return self.after is not None

    def over(self) -> None:
        """Let the trial compete with later ones; one that failed does not, or none might finish."""
        if self._halving is not None:
            self._halving.enter(self._told)


def _trial(
    number: int,
    arm: Arm,
    chosen: Mapping[str, Any],
    came: Came,
    pruning: _Pruning,
    metric: Metric,
) -> Trial:
    # A run may have come further than this search let it: another recipe asked for it whole.
    pruned = pruning(came.history[:-1] if came.finished else came.history)
    made = came.history[: pruning.after]
    result, share = None, 1.0
    if pruned:
        share = made[-1]["step"] / came.history[-1]["step"]
    elif came.finished:
        kept = next((entry for entry in made if entry["step"] == came.best_step), made[-1])
        result = kept[metric.key], kept["log_loss"]
    return Trial(
        number, arm, chosen,
        "pruned" if pruned else "failed" if came.failed else "finished",
        tuple(entry[metric.key] for entry in made),
        made[-1]["epoch"] if made else 0.0, result, came.seconds * share,
    )  # fmt: skip


class _Proposing:
    """Proposes settings that were not tried yet and are small enough."""

    def __init__(
        self,
        space: Space,
        metric: Metric,
        seed: int,
        fits: Callable[[Method], bool],
    ) -> None:
        import optuna

        self._optuna, self._space, self._fits = optuna, space, fits
        self._informed = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_AT_RANDOM)
        self._blind = optuna.samplers.RandomSampler(seed=seed)
        with _quiet(optuna.logging):
            self._study = optuna.create_study(
                direction="maximize" if metric.higher_is_better else "minimize",
                sampler=self._informed,
            )
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(range(len(values.values)))
            if isinstance(values, Choices)
            else optuna.distributions.IntDistribution(int(values.low), int(values.high), values.log)
            if values.whole
            else optuna.distributions.FloatDistribution(values.low, values.high, values.log)
            for name, values in space.settings.items()
        }
        self._study.enqueue_trial(
            {
                name: values.values.index(value) if isinstance(values, Choices) else value
                for name, value in space.start().items()
                for values in [space.settings[name]]
            }
        )
        self._seen: set[tuple[object, ...]] = set()

    def next(self) -> tuple["optuna.Trial", Arm, dict[str, Any]] | None:
        """Return Optuna's trial, the row with its settings, and these; None if none is left."""
        state = self._optuna.trial.TrialState
        for attempt in range(_TRIES):
            # Where it insists on what was tried, chance finds the rest.
            self._study.sampler = self._blind if attempt else self._informed
            asked = self._study.ask(self._distributions)
            chosen = self._values(asked.params)
            arm = self._space.arm(chosen)
            what = (arm.method, arm.settings)
            if not self._fits(arm.method):
                self._study.tell(asked, state=state.PRUNED)  # so that the sampler avoids it
            elif what in self._seen:
                self._study.tell(asked, state=state.FAIL)
            else:
                self._seen.add(what)
                return asked, arm, chosen
        return None

    def tell(self, asked: "optuna.Trial", trial: Trial) -> None:
        """Tell Optuna what came of a trial."""
        if trial.result is not None:
            self._study.tell(asked, trial.result[0])
        else:  # failed ones too, so that the sampler avoids the like
            self._study.tell(asked, state=self._optuna.trial.TrialState.PRUNED)

    def _values(self, proposed: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, values in self._space.settings.items():
            if isinstance(values, Choices):
                found[name] = values.values[proposed[name]]
            else:
                found[name] = values.rounded(proposed[name])
        return found


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep Optuna from saying that a study was created, and leave its verbosity as it was."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
