"""A search against Optuna's own loop, and what must not change what it finds."""

import sys
from dataclasses import replace
from typing import Any

import optuna
import pytest

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import present
from deltafit.experiments.trials import Came, best_of, check_optuna, trials_of
from deltafit.methods import LoRA, Method
from deltafit.tasks.metrics import find_metric
from tests.experiments.searches import RATES, Formula, searched, space_of

ACCURACY = find_metric("accuracy")
HALVING = Search({}, 12, pruning="successive-halving")


def test_it_is_optunas_own_search() -> None:
    """The same sampler and pruner in ``study.optimize`` try the same and prune the same."""
    values = {"learning_rate": {"low": 1e-5, "high": 1e-2}, "rank": [2, 4, 8, 16]}
    space = space_of(values)
    sampler = optuna.samplers.TPESampler(seed=7, n_startup_trials=4)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.enqueue_trial({"learning_rate": 5e-4, "rank": 2})
    expected: list[tuple[Any, ...]] = []

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        rank = values["rank"][trial.suggest_categorical("rank", [0, 1, 2, 3])]  # type: ignore[index]
        rate = float(f"{rate:.3g}")
        for number in range(1, 6):
            figure = Formula.entry(rate, number)["accuracy"]
            trial.report(figure, number)
            if number < 5 and trial.should_prune():
                expected.append((rate, rank, "pruned", number))
                raise optuna.TrialPruned
        expected.append((rate, rank, "finished", 5))
        return float(figure)

    study.optimize(objective, n_trials=12)
    trials = searched(space, HALVING, Formula(), seed=7)
    assert [
        (t.chosen["learning_rate"], t.chosen["rank"], t.state, len(t.figures)) for t in trials
    ] == expected
    assert {state for _, _, state, _ in expected} == {"pruned", "finished"}


def test_the_same_seed_tries_the_same_and_another_one_others() -> None:
    space = space_of({"learning_rate": RATES, "dropout": {"low": 0, "high": 0.3}})
    one, again, other = (searched(space, HALVING, Formula(), seed) for seed in (1, 1, 2))
    assert one == again and [t.chosen for t in one] != [t.chosen for t in other]
    assert one[0].chosen == {"learning_rate": 5e-4, "dropout": 0.0}, "first the row as it is"
    assert one[0].arm == space.row
    for trial in one:
        assert 1e-5 <= trial.chosen["learning_rate"] <= 1e-1
        assert 0 <= trial.chosen["dropout"] <= 0.3


@pytest.mark.parametrize("pruning", ["none", "successive-halving"])
def test_begun_again_after_any_evaluation_it_comes_to_the_same(pruning: Any) -> None:
    space, search = space_of({"learning_rate": RATES}), replace(HALVING, pruning=pruning)
    whole = Formula(limit=2e-3)
    expected = searched(space, search, whole, seed=3)
    assert "failed" in {trial.state for trial in expected}
    for most in range(whole.evaluations):
        run = Formula(2e-3, most)
        with pytest.raises(KeyboardInterrupt):
            searched(space, search, run, seed=3)
        rest = Formula(limit=2e-3)
        rest.kept = run.kept
        assert searched(space, search, rest, seed=3) == expected
        assert run.evaluations + rest.evaluations == whole.evaluations, "none was done twice"


def test_runs_that_others_finished_are_pruned_where_they_would_have_been() -> None:
    space = space_of({"learning_rate": {"low": 1e-5, "high": 1e-2}})
    expected = searched(space, HALVING, Formula())
    whole = Formula()
    searched(space, replace(HALVING, pruning="none"), whole)
    for trial in expected:  # each trained to its end
        whole(trial.arm, lambda _: False)
    assert searched(space, HALVING, whole) == expected


def test_successive_halving_trains_less_and_still_finds_the_best() -> None:
    space = space_of({"learning_rate": {"low": 1e-5, "high": 1e-2}})
    halved, full = Formula(), Formula()
    trials = searched(space, HALVING, halved)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned and {len(trial.figures) for trial in pruned} <= {1, 2, 4}
    searched(space, replace(HALVING, pruning="none"), full)
    assert halved.evaluations < 0.7 * full.evaluations
    best = best_of(trials, ACCURACY)
    assert best is not None and best.result is not None
    assert best.result[0] == max(Formula.entry(t.chosen["learning_rate"], 5)["accuracy"]
                                 for t in trials)  # fmt: skip


def test_a_small_space_is_tried_whole_and_each_of_it_once() -> None:
    space = space_of({"rank": [2, 4, 8], "dropout": [0.0, 0.1]})
    trials = searched(space, replace(HALVING, trials=50), Formula())
    tried = {(t.chosen["rank"], t.chosen["dropout"]) for t in trials}
    assert len(trials) == len(tried) == 6


def test_sizes_above_the_budget_are_left_out() -> None:
    space = space_of({"rank": {"low": 1, "high": 64}, "learning_rate": RATES})

    def fits(method: Method) -> bool:
        assert isinstance(method, LoRA)
        return method.rank <= 4

    search = Search({}, 12, parameters=99)
    trials = [*trials_of(space, search, ACCURACY, 0, Formula(), fits)]
    assert len(trials) == 12 and {t.chosen["rank"] for t in trials} <= {1, 2, 3, 4}
    with pytest.raises(UsageError, match=r"search.parameters: lora trains more than 99 parameters"):
        [*trials_of(space, search, ACCURACY, 0, Formula(), lambda _: False)]


def test_no_trial_is_begun_when_the_minutes_are_spent() -> None:
    space = space_of({"learning_rate": {"low": 1e-5, "high": 1e-3}})
    # Of 30 seconds each.
    for minutes, count in ((0.1, 1), (0.5, 1), (0.6, 2), (1.6, 4), (60, 12)):
        trials = searched(space, Search({}, 12, minutes=minutes), Formula())
        assert len(trials) == count
    halved = searched(space, replace(HALVING, minutes=1.6), Formula())
    assert len(halved) > 4, "a pruned one takes less"


def test_a_trial_that_fails_prunes_no_other() -> None:
    """The row as it is written does best at first, and diverges: others have to finish."""
    space = space_of({"learning_rate": RATES}, "head")  # whose default is 5e-3
    trials = searched(space, HALVING, Formula(limit=2e-3), seed=3)
    assert trials[0].state == "failed" and best_of(trials, ACCURACY) is not None
    assert "pruned" in {trial.state for trial in trials}


def test_the_best_is_finished_and_of_equal_ones_the_surest() -> None:
    trials = searched(space_of({"learning_rate": RATES}), HALVING, Formula(), seed=3)
    first = next(t for t in trials if t.state == "finished")
    surer = replace(first, result=(0.9, 0.1))
    assert best_of([replace(first, result=(0.9, 0.2)), surer], ACCURACY) is surer
    assert best_of([surer, replace(first, result=(0.9, 0.1))], ACCURACY) is surer, "the earlier"
    assert best_of([replace(first, result=None)], ACCURACY) is None
    loss = find_metric("log_loss")
    lower = replace(first, result=(0.1, 0.1))
    assert best_of([surer, lower], loss) is lower


def test_the_figure_of_a_trial_is_of_the_checkpoint_that_it_keeps() -> None:
    def run(arm: Any, halt: Any) -> Came:
        history = [
            {"step": step, "epoch": step, "accuracy": figure, "log_loss": 1.0}
            for step, figure in ((1, 0.5), (2, 0.9), (3, 0.7))
        ]
        return Came(history, 2, 1.0, finished=True)

    space = space_of({"learning_rate": RATES})
    (trial, _) = trials_of(space, Search({}, 2), ACCURACY, 0, run, lambda _: True)
    assert trial.result == (0.9, 1.0) and trial.figures == (0.5, 0.9, 0.7)


def test_a_metric_that_falls_is_searched_downwards() -> None:
    space, metric = (
        space_of({"learning_rate": {"low": 1e-5, "high": 1e-2}}),
        find_metric("log_loss"),
    )
    trials = searched(space, HALVING, Formula(), metric=metric)
    best = best_of(trials, metric)
    assert best is not None and 1e-3 < present(best.arm, "learning_rate") < 9e-3


def test_without_optuna_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    check_optuna()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(DeltafitError, match=r"Run pip install 'deltafit\[search\]'"):
        check_optuna()
