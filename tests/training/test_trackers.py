"""TensorBoard and W&B get the curves; what cannot be used is said."""

import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from deltafit.errors import UsageError
from deltafit.files import read_json
from deltafit.methods import Head
from deltafit.training.accelerator import make_accelerator
from deltafit.training.progress import Silent
from deltafit.training.run import RunResult
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.tracking import (
    Tracking,
    final_figures,
    flat,
    offline_sentence,
    started_trackers,
    track_finished,
)
from deltafit.training.train import train
from tests.training.tiny_runs import save_model, write_table

SETTINGS = TrainingSettings(epochs=2, batch_size=8, max_length=16)


def run(folder: Path, *trackers: str) -> RunResult:
    model, data = save_model(folder / "model"), write_table(folder / "texts.csv", 30)
    return train(
        model,
        DataConfig(data, validation="0.2"),
        folder / "run",
        method=Head(),
        settings=SETTINGS,
        trackers=trackers,
    )


@pytest.mark.slow
def test_tensorboard_gets_every_evaluation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run(tmp_path, "tensorboard").metrics["history"]
    (events,) = (tmp_path / "run" / "logs" / "deltafit").glob("events.out.*")
    read = EventAccumulator(str(events))
    read.Reload()
    for key in ("train_loss", "accuracy", "loss"):
        written = [(event.step, event.value) for event in read.Scalars(key)]
        assert written == [(entry["step"], pytest.approx(entry[key])) for entry in history]


@pytest.mark.slow
def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    run(tmp_path, "wandb")
    (file,) = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/*.wandb")
    last = time.monotonic() + 30  # W&B's own process writes when it comes to it
    while b"validation/accuracy" not in file.read_bytes() and time.monotonic() < last:
        time.sleep(0.05)
    assert b"train_loss" in file.read_bytes() and b"validation/accuracy" in file.read_bytes()


@pytest.mark.slow
def test_wandb_writes_into_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with started_trackers(Tracking(("wandb",), tmp_path / "run" / "logs"), {}, Silent()):
        pass
    assert list((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*"))
    assert not (tmp_path / "wandb").exists()


def test_an_unknown_tracker_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tracker cannot be used.*clipboard.*tensorboard"):
        run(tmp_path, "clipboard")


def test_a_tracker_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="aim is not installed"):
        run(tmp_path, "aim")


def test_fp16_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="fp16 needs a CUDA device"):
        make_accelerator("fp16")


def test_precisions_of_runs_in_one_process_are_their_own() -> None:
    for mixed in ("bf16", "no", "bf16"):
        assert make_accelerator(mixed).mixed_precision == mixed  # type: ignore[arg-type]  # literals
    AcceleratorState._reset_state()


def test_trackers_are_finished_when_training_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []
    monkeypatch.setattr(
        "accelerate.tracking.TensorBoardTracker.finish", lambda self: finished.append(self.name)
    )
    with (
        pytest.raises(ZeroDivisionError),
        started_trackers(Tracking(("tensorboard",), tmp_path), {"a": {"b": None}}, Silent()),
    ):
        raise ZeroDivisionError
    assert finished == ["tensorboard"]


def test_settings_are_flattened_to_plain_values() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": (1, 2), "f": 0.5}
    assert flat(nested) == {"a.b": 1, "a.c.d": "None", "e": "(1, 2)", "f": 0.5}


METRICS: dict[str, Any] = {
    "before": {"test": {"accuracy": 0.25, "per_class": {}}},
    "after": {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.75, "collapsed": False}},
    "costs": {"training_seconds": 12.5, "by_part": {}},
    "history": [
        {"step": 3, "epoch": 1.0, "train_loss": 0.5, "accuracy": 0.25},
        {"step": 6, "epoch": 2.0, "train_loss": 0.25, "accuracy": 0.5},
    ],
}
FINAL = {
    **{"validation/accuracy": 0.5, "test/accuracy": 0.75, "before/test/accuracy": 0.25},
    "costs/training_seconds": 12.5,
}


def logged_to_mlflow(folder: Path) -> list[dict[str, Any]]:
    """The runs that MLflow's own store has in a folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            curves = {
                name: [(each.step, each.value) for each in client.get_metric_history(
                    run.info.run_id, name)] for name in run.data.metrics
            }  # fmt: skip
            found.append(
                {"group": experiment.name, "name": run.info.run_name, "curves": curves,
                 "settings": run.data.params, "status": run.info.status}
            )  # fmt: skip
    return found


def test_final_figures_are_the_numbers_of_the_metrics() -> None:
    assert final_figures(METRICS) == FINAL


@pytest.mark.slow
def test_mlflow_gets_settings_curves_and_final_figures_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "logs"
    tracking = Tracking(("mlflow",), logs, "r=8, seed 0", "my recipe")
    facts = {"settings": {"epochs": 2}, "model": "here"}
    with pytest.raises(KeyboardInterrupt), started_trackers(tracking, facts, Silent()) as trackers:
        trackers.log(METRICS["history"][0])
        raise KeyboardInterrupt
    moved = facts | {"model": "moved"}  # gone on with
    with started_trackers(tracking, moved, Silent()) as trackers:
        trackers.log(METRICS["history"][1])
        trackers.conclude(METRICS)
    (run,) = logged_to_mlflow(logs)
    assert (run["group"], run["name"], run["status"]) == ("my recipe", "r=8, seed 0", "FINISHED")
    assert run["settings"] == {"settings.epochs": "2", "model": "here"}
    assert run["curves"]["accuracy"] == [(3, 0.25), (6, 0.5)]
    assert {name: run["curves"][name] for name in FINAL} == {
        name: [(6, value)] for name, value in FINAL.items()
    }
    track_finished(tracking, facts, METRICS, Silent())  # it followed the run to its end
    assert logged_to_mlflow(logs) == [run]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"], "nothing lies about"


@pytest.mark.slow
def test_a_finished_run_is_told_at_once_and_only_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = Tracking(("tensorboard",), tmp_path, "r=8", "my recipe")
    for _ in range(2):
        track_finished(tracking, {}, METRICS, Silent())
    (events,) = (tmp_path / "r=8").glob("events.out.*")
    read = EventAccumulator(str(events))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("train_loss")] == [(3, 0.5), (6, 0.25)]
    assert [(each.step, each.value) for each in read.Scalars("test/accuracy")] == [(6, 0.75)]
    assert read_json(tmp_path / "r=8" / "trackers.json")["finished"] == ["tensorboard"]


def test_without_an_account_wandb_is_offline_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def nobody() -> bool:
        asked.append("asked")
        return False

    monkeypatch.setattr("deltafit.training.tracking._is_logged_in", nobody)
    assert offline_sentence(("wandb",), tmp_path) is None, "the tests say WANDB_MODE"
    monkeypatch.delenv("WANDB_MODE")
    assert offline_sentence(("tensorboard",), tmp_path) is None and not asked
    sentence = offline_sentence(("wandb",), tmp_path)
    assert sentence is not None and str(tmp_path / "wandb") in sentence
