"""Where runs stand, as their folders say it, whoever does them."""

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import TrainingError
from deltafit.experiments.arms import Arm, Experiment
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.recipe_run import run
from deltafit.experiments.recipe_start import prepared
from deltafit.experiments.search_space import spaces_of
from deltafit.experiments.standing import Overview, Standing
from deltafit.experiments.store import Store
from deltafit.experiments.trials_at_work import trials_at_work
from deltafit.experiments.tuning import trial_run
from deltafit.files import read_json
from deltafit.methods import BitFit, Head, LoRA
from deltafit.training.config import RunConfig
from deltafit.training.noting import PROGRESS_FILE, Noting
from deltafit.training.progress import Silent
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data


def experiment_on(model: str, data: DataConfig, metric: str = "accuracy") -> Experiment:
    settings = TrainingSettings(metric=metric)
    arms = (Arm("head", Head(), settings), Arm("r=2", LoRA(rank=2), settings))
    return Experiment(model, data, HeadConfig(), arms, (0, 1))


@pytest.fixture
def store(model: str, data: DataConfig, tmp_path: Path) -> Store:
    return Store(tmp_path / "store", model, load_data(data))


def finish(store: Store, config: RunConfig, seconds: float, **figures: float) -> None:
    after = {"validation": figures, "test": {key: value - 0.1 for key, value in figures.items()}}
    content: dict[str, Any] = {"after": after, "costs": {"training_seconds": seconds}}
    (store.folder(config) / "metrics.json").write_text(json.dumps(content))


def test_it_follows_runs_from_waiting_to_their_end(
    model: str, data: DataConfig, store: Store
) -> None:
    experiment = experiment_on(model, data)
    first, second, third, _ = experiment.runs()
    standing = Standing(experiment, store)

    def states() -> tuple[list[str], Overview]:
        overview = standing.look()
        return [each.state for each in overview.runs], overview

    found, overview = states()
    assert found == ["waiting"] * 4 and overview.best is overview.seconds_left is None
    assert [each.name for each in overview.runs][::3] == ["head, seed 0", "r=2, seed 1"]

    with store.begun(first, wait=False):
        Noting(Silent(), store.folder(first)).start("training", 9, 0)
        assert states()[0] == ["running", "waiting", "waiting", "waiting"]
        finish(store, first, 10.0, accuracy=0.75)
    assert not (store.folder(first) / PROGRESS_FILE).exists(), "it is for the time of the work"
    found, overview = states()
    assert found[0] == "done" and (overview.runs[0].validation, overview.runs[0].test) == (
        *(0.75, 0.65),
    )
    assert overview.seconds_left == 30.0, "three more like it"

    with store.begun(second, wait=False):
        store.failed(second, TrainingError("diverged"))
    with store.begun(third, wait=False):
        finish(store, third, 40.0, accuracy=0.5)
    found, overview = states()
    assert found == ["done", "failed", "done", "waiting"] and overview.count("failed") == 1
    assert overview.best == overview.runs[0] and overview.seconds_left == 40.0, "as its row took"


def test_the_lower_loss_is_the_better(model: str, data: DataConfig, store: Store) -> None:
    experiment = experiment_on(model, data, metric="log_loss")
    for config, loss in zip(experiment.runs(), (0.5, 0.25, 0.75), strict=False):
        with store.begun(config, wait=False):
            finish(store, config, 1.0, log_loss=loss)
    overview = Standing(experiment, store).look()
    assert overview.metric == "log_loss" and overview.best == overview.runs[1]


def test_time_left_is_shared_by_processes(model: str, data: DataConfig, store: Store) -> None:
    experiment = experiment_on(model, data)
    first, second, third, _ = experiment.runs()
    with store.begun(first, wait=False):
        finish(store, first, 10.0, accuracy=0.5)
    with store.begun(second, wait=False), store.begun(third, wait=False):
        for config, left in ((second, 4.0), (third, 12.0)):
            Noting(Silent(), store.folder(config)).start("training", 9, 0)
            file = store.folder(config) / PROGRESS_FILE
            file.write_text(json.dumps(read_json(file) | {"seconds_left": left}))
        # Two go on at once in one process (jointly), or in two; the fourth waits.
        assert Standing(experiment, store).look().seconds_left == 12.0 + 10.0
        assert Standing(experiment, store, 2).look().seconds_left == (4.0 + 12.0 + 10.0) / 2
        # On a cluster nobody was told how many there are.
        file.write_text(json.dumps(read_json(file) | {"host": "elsewhere"}))
        assert Standing(experiment, store).look().seconds_left == (4.0 + 12.0 + 10.0) / 2


def test_time_left_goes_by_the_row_and_not_by_its_method(
    model: str, data: DataConfig, store: Store
) -> None:
    short, long = TrainingSettings(epochs=1), TrainingSettings(epochs=8)
    arms = (Arm("short", Head(), short), Arm("long", Head(), long))
    experiment = Experiment(model, data, HeadConfig(), arms, (0, 1))
    for config, seconds in zip(experiment.runs()[::2], (10.0, 80.0), strict=True):
        with store.begun(config, wait=False):
            finish(store, config, seconds, accuracy=0.5)
    assert Standing(experiment, store).look().seconds_left == 10.0 + 80.0
    (store.folder(experiment.runs()[2]) / "metrics.json").unlink()
    assert Standing(experiment, store).look().seconds_left == 3 * 10.0, "of a row that has none"


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"jointly": True}, {"processes": 2}])
def test_however_runs_are_done_they_are_seen(
    recipe: Path, done: Comparison, tmp_path: Path, how: dict[str, Any]
) -> None:
    seen: list[Overview] = []

    class Looking(Silent):
        """Looks whenever it hears something, and so at least once a run or a group."""

        standing: Standing | None = None

        def watch(self, standing: Standing) -> None:
            self.standing = standing

        def look(self) -> None:
            if self.standing is not None:
                seen.append(self.standing.look())

        def say(self, sentence: str) -> None:
            self.look()

        def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
            self.look()

    looking = Looking()
    result = run(recipe, tmp_path / "store", reporter=looking, watch=looking.watch, **how)
    looking.look()
    assert [each.count("waiting") for each in seen[:1]] == [6]
    if "processes" not in how:
        assert max(each.count("running") for each in seen) == (4 if how else 1)
        doing = {run.note.what for each in seen for run in each.runs if run.note}
        assert "training" in doing
    assert seen[-1].count("done") == 6 and seen[-1].seconds_left == 0.0
    metrics = [read_json(path) for path in (tmp_path / "store").glob("runs/*/metrics.json")]
    best = seen[-1].best
    assert best is not None
    assert best.validation == max(each["after"]["validation"]["accuracy"] for each in metrics)
    assert not list((tmp_path / "store").glob(f"runs/*/*{PROGRESS_FILE}*"))
    assert len(result.rows) == 6


def test_trials_of_a_search_that_go_on_are_shown_with_their_settings(
    recipe: Path, tmp_path: Path
) -> None:
    space = (
        "{learning_rate: {low: 1e-4, high: 1e-1}, rank: [2, 4], "
        "target_modules: [[query], [key, value]]}"
    )
    runs = "runs=[{method: head}, {method: lora, name: mine}]"
    made = prepared(recipe, tmp_path, [runs, f"search={{trials: 3, space: {space}}}"])
    standing = Standing(made.experiment, made.store, trials=partial(trials_at_work, made))
    _, lora = spaces_of(made.recipe, made.experiment.arms)
    trial = trial_run(made, lora.arm({"rank": 4, "target_modules": ["key", "value"]}))
    others = [
        replace(trial, settings=replace(trial.settings, seed=1)),
        replace(trial, settings=replace(trial.settings, epochs=9)),
        replace(trial, method=BitFit()),
        made.experiment.runs()[0],
    ]
    with ExitStack() as stack:
        for config in (*others, trial):
            stack.enter_context(made.store.begun(config, wait=False))
            Noting(Silent(), made.store.folder(config)).start("training", 9, 3)
        overview = standing.look()
        (found,) = overview.trials
        assert found.name == "mine: learning_rate=0.01, rank=4, target_modules=key+value"
        assert found.note is not None and found.note.step == 3 and overview.seconds_left is None
        assert overview.count("running") == 1 and len(overview.runs) == 4, "rows as before"
    assert standing.look().trials == ()
