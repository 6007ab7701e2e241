"""A recipe's runs in trackers: the numbers of their metrics.json, one run a run, in one group."""

from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import UsageError
from deltafit.experiments.comparison import compare
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.recipe_run import run
from deltafit.experiments.recipe_start import prepared
from deltafit.files import read_json, safe_name
from deltafit.training.tracking import final_figures
from tests.experiments.recipe_runs import Listening

ONE = ["name=tiny", "seeds=[0]", "settings.epochs=1"]


def tracked_by_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.glob("events.out.*")
    read = EventAccumulator(str(events))
    read.Reload()
    return {
        name: [(each.step, each.value) for each in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def check_against(metrics: dict[str, Any], found: dict[str, list[tuple[int, float]]]) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in metrics["history"]:
        for name, value in entry.items():
            curves.setdefault(name, []).append((entry["step"], pytest.approx(value)))
    last = metrics["history"][-1]["step"]
    final = {name: [(last, pytest.approx(v))] for name, v in final_figures(metrics).items()}
    assert found == curves | final and {"test/accuracy", "costs/training_seconds"} <= set(final)


def test_it_has_no_say_in_where_a_run_is(recipe: Path, tmp_path: Path) -> None:
    plain = prepared(recipe, tmp_path, ())
    tracked = prepared(recipe, tmp_path, ["track=[wandb, mlflow]"])
    for one, other in zip(plain.experiment.runs(), tracked.experiment.runs(), strict=True):
        assert plain.store.folder(one) == tracked.store.folder(other)
    assert tracked.recipe.track == ("wandb", "mlflow") and plain.recipe.track == ()


def test_an_unknown_tracker_is_told_with_those_there_are(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"track\.0: It takes one of .*mlflow.*; got 'wandbb'"):
        read_recipe(recipe, ["track=[wandbb]"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize("how", [{}, {"jointly": True}, {"processes": 2}])
def test_every_run_of_a_recipe_is_tracked(
    recipe: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    pytest.importorskip("tensorboard")
    overrides = [*ONE, "track=[tensorboard]"]
    made = prepared(recipe, tmp_path, overrides)
    run(recipe, tmp_path, overrides=overrides, **how)
    logs = tmp_path / "tiny" / "logs"
    names = made.experiment.names()
    assert {path.name for path in logs.iterdir()} == set(map(safe_name, names.values()))
    for config, name in names.items():
        metrics = read_json(made.store.folder(config) / "metrics.json")
        check_against(metrics, tracked_by_tensorboard(logs / safe_name(name)))


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_two_processes_begin_mlflow_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    overrides, listening = [*ONE, "track=[mlflow]"], Listening()
    run(recipe, tmp_path, overrides=overrides, processes=2, reporter=listening)
    assert not [sentence for sentence in listening.said if "tracker" in sentence]
    client = MlflowClient(f"sqlite:///{tmp_path / 'tiny' / 'logs' / 'mlflow.db'}")
    (group,) = (each for each in client.search_experiments() if each.name == "tiny")
    found = client.search_runs([group.experiment_id])
    names = prepared(recipe, tmp_path, overrides).experiment.names().values()
    assert sorted(str(each.info.run_name) for each in found) == sorted(names)
    for each in found:
        assert each.info.status == "FINISHED" and "test/accuracy" in each.data.metrics


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_a_tracker_that_fails_ends_no_run(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    overrides, listening = [*ONE, "track=[tensorboard]"], Listening()

    def failing(self: object, values: object, step: int) -> None:
        raise ConnectionError("no server")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.tracking.TensorBoardTracker.log", failing)
        result = run(recipe, tmp_path, overrides=overrides, reporter=listening)
    assert not any(row.get("failure") for row in result.rows)
    told = [sentence for sentence in listening.said if "no server" in sentence]
    assert len(told) == 3 + 1, "in each run, and once at the end"
    missed = "What tensorboard missed it is told when the same runs are asked for again."
    assert listening.said.count(missed) == 1
    run(recipe, tmp_path, overrides=overrides)
    logs = [*(tmp_path / "tiny" / "logs").glob("*/trackers.json")]
    assert len(logs) == 3
    assert all(read_json(path)["finished"] == ["tensorboard"] for path in logs)


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_runs_that_were_finished_before_are_told_then(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(recipe, tmp_path, overrides=ONE)
    listening = Listening()
    run(recipe, tmp_path, overrides=[*ONE, "track=[tensorboard]"], reporter=listening)
    assert listening.begun == [] and len([*(tmp_path / "tiny" / "logs").iterdir()]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_what_is_not_installed_is_a_sentence_and_the_runs_are_done(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.tracked.is_installed", lambda name: False)
    listening = Listening()
    result = run(recipe, tmp_path, overrides=[*ONE, "track=[wandb]"], reporter=listening)
    assert listening.said[0] == (
        "wandb is not installed, so nothing is logged to it: pip install 'deltafit[wandb]'."
    )
    assert len(result.rows) == 6 and not (tmp_path / "tiny" / "logs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_a_comparison_is_tracked_too(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    asked = prepared(recipe, tmp_path / "none", ONE).recipe
    compare(
        asked.model, asked.data, tmp_path / "out", methods=["head", "lora:rank=2"],
        settings=asked.settings, trackers=("tensorboard",),
    )  # fmt: skip
    for method in ("head", "lora:rank=2"):
        (metrics,) = (tmp_path / "out" / "runs").glob(f"{safe_name(method)}-*/metrics.json")
        found = tracked_by_tensorboard(tmp_path / "out" / "logs" / safe_name(method))
        check_against(read_json(metrics), found)
