"""TensorBoard and W&B get the curves; what cannot be used is said."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from deltafit.errors import UsageError
from deltafit.methods import Head
from deltafit.training.accelerator import flat, started_accelerator
from deltafit.training.run import RunResult
from deltafit.training.settings import DataConfig, TrainingSettings
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
    assert b"train_loss" in file.read_bytes()


@pytest.mark.slow
def test_wandb_writes_into_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with started_accelerator("no", tmp_path / "run", ("wandb",), {}):
        pass
    assert list((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*"))
    assert not (tmp_path / "wandb").exists()


def test_an_unknown_tracker_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tracker cannot be used.*clipboard.*tensorboard"):
        run(tmp_path, "clipboard")


def test_a_tracker_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="aim is not installed"):
        run(tmp_path, "aim")


def test_fp16_without_cuda_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with (
        pytest.raises(UsageError, match="fp16 needs a CUDA device"),
        started_accelerator("fp16", tmp_path, (), {}),
    ):
        pass


def test_precisions_of_runs_in_one_process_are_their_own(tmp_path: Path) -> None:
    for mixed in ("bf16", "no", "bf16"):
        with started_accelerator(mixed, tmp_path, (), {}) as accelerator:  # type: ignore[arg-type]  # literals
            assert accelerator.mixed_precision == mixed
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
        started_accelerator("no", tmp_path, ("tensorboard",), {"a": {"b": None}}),
    ):
        raise ZeroDivisionError
    assert finished == ["tensorboard"]


def test_settings_are_flattened_to_plain_values() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": (1, 2), "f": 0.5}
    assert flat(nested) == {"a.b": 1, "a.c.d": "None", "e": "(1, 2)", "f": 0.5}
