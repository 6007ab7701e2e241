"""Folders that jointly trained runs leave: those of single runs, and what their figures say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltafit
from deltafit.data import Splits
from deltafit.errors import TrainingError, UsageError
from deltafit.files import read_json, read_tensors
from deltafit.methods import Head, LoRA
from deltafit.training.config import RunConfig
from deltafit.training.interruption import Interrupted
from deltafit.training.joined_run import execute_jointly, groups_to_join
from deltafit.training.progress import Reporter, Silent
from deltafit.training.run import RunResult, execute
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data
from tests.training.test_resume import InterruptAt
from tests.training.tiny_runs import save_model, tables

SETTINGS = TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return tables(tmp_path_factory.mktemp("data"), held_out=12)


@pytest.fixture(scope="module")
def configs(model: str, data: DataConfig) -> list[RunConfig]:
    return [
        RunConfig(model, data, LoRA(rank=2), settings=SETTINGS),
        RunConfig(model, data, LoRA("all-linear", rank=3), settings=replace(SETTINGS, seed=1)),
    ]


@pytest.fixture(scope="module")
def splits(data: DataConfig) -> Splits:
    return load_data(data)


def jointly(
    configs: list[RunConfig], splits: Splits, folder: Path, **named: Any
) -> list[RunResult | TrainingError]:
    folders = [folder / str(number) for number in range(len(configs))]
    named = {"reporter": Silent()} | named
    return execute_jointly(configs, splits, folders, **named)


def single(config: RunConfig, splits: Splits, folder: Path, **named: Any) -> RunResult:
    return execute(config, splits, folder, reporter=Silent(), **named)


def assert_same_files(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    for name in (
        *("adapter/adapter_model.safetensors", "predictions.safetensors"),
        *("checkpoints/best.safetensors", "checkpoints/step-00000010/tensors.safetensors"),
    ):
        first, second = read_tensors(one / name), read_tensors(other / name)
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_allclose(first[key], second[key], rtol=0, atol=tolerance)


def assert_same_figures(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["judged_on"] == other["judged_on"] and one["best_step"] == other["best_step"]
    for when in ("before", "after"):
        for part, figures in one[when].items():
            for key in ("accuracy", "macro_f1", "log_loss"):
                assert figures[key] == pytest.approx(other[when][part][key], abs=1e-5)
    for key in ("trainable_parameters", "total_parameters", "examples_seen"):
        assert one["costs"][key] == other["costs"][key]


@pytest.mark.slow
@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig("mean", "probe")])
def test_folders_are_those_of_single_runs(
    configs: list[RunConfig], splits: Splits, tmp_path: Path, head: HeadConfig
) -> None:
    configs = [replace(config, head=head) for config in configs]
    results = jointly(configs, splits, tmp_path)
    for number, (config, result) in enumerate(zip(configs, results, strict=True)):
        assert isinstance(result, RunResult)
        alone = single(config, splits, tmp_path / f"alone {number}")
        assert_same_files(result.folder, alone.folder)
        assert_same_figures(result.metrics, alone.metrics)
        assert read_json(result.folder / "metrics.json") == result.metrics
        assert result.metrics.keys() - alone.metrics.keys() == {"joined"}
        assert result.metrics["run_hash"] != alone.metrics["run_hash"]
        texts = ["w0 w9 w12", "w3 w30"]
        for found, expected in zip(
            deltafit.predict(result.folder, texts), deltafit.predict(alone.folder, texts),
            strict=True,
        ):  # fmt: skip
            assert found.label == expected.label
            assert found.probability == pytest.approx(expected.probability, abs=1e-5)


@pytest.mark.slow
def test_metrics_say_what_is_shared(
    configs: list[RunConfig], splits: Splits, tmp_path: Path
) -> None:
    results = jointly(configs, splits, tmp_path)
    metrics = [result.metrics for result in results if isinstance(result, RunResult)]
    assert [each["joined"] for each in metrics] == [2, 2]
    assert all("trained jointly with others:" in each["notes"][0] for each in metrics)
    first, second = (each["costs"]["peak_memory_bytes"] for each in metrics)
    assert first == second > 0


@pytest.mark.slow
def test_one_that_diverges_is_told_and_the_other_finishes(
    configs: list[RunConfig], splits: Splits, tmp_path: Path
) -> None:
    wild = replace(SETTINGS, learning_rate=1e20, clip=None, warmup=0.0)
    configs = [replace(configs[0], settings=wild), configs[1]]
    failed, finished = jointly(configs, splits, tmp_path)
    assert isinstance(failed, TrainingError) and "diverged" in failed.what
    assert isinstance(finished, RunResult) and (finished.folder / "metrics.json").is_file()
    assert not (tmp_path / "0" / "metrics.json").exists()
    assert not (tmp_path / "0" / "adapter").exists()


@pytest.mark.slow
def test_interrupted_runs_go_on_together_or_alone(
    configs: list[RunConfig], splits: Splits, tmp_path: Path
) -> None:
    def stopped(folder: Path) -> None:
        reporter: Reporter = InterruptAt(3)
        with pytest.raises(Interrupted, match="after step 3 of 10; a checkpoint of every run"):
            jointly(configs, splits, folder, reporter=reporter)

    whole = jointly(configs, splits, tmp_path / "whole")
    stopped(tmp_path / "together")
    again = jointly(configs, splits, tmp_path / "together", resume=True)
    stopped(tmp_path / "alone")
    for number, config in enumerate(configs):
        one, expected = again[number], whole[number]
        assert isinstance(one, RunResult) and isinstance(expected, RunResult)
        assert_same_files(one.folder, expected.folder, tolerance=0.0)
        other = single(config, splits, tmp_path / "alone" / str(number), resume=True)
        assert_same_files(other.folder, expected.folder)


def test_which_runs_can_be_joined(model: str, data: DataConfig) -> None:
    def config(method: Any, seed: int = 0, **changes: Any) -> RunConfig:
        return RunConfig(model, data, method, settings=replace(SETTINGS, seed=seed, **changes))

    top = [config(LoRA(layers=(-1,))), config(LoRA("all-linear", layers=(2,)))]
    all_blocks = [config(LoRA()), config(LoRA(rank=2), seed=1), config(LoRA(("value",)))]
    others = [config(Head()), config(LoRA(layers=(1,))), config(LoRA(rank=3), batch_size=4)]
    mixed_up = [all_blocks[0], top[0], others[0], all_blocks[1], *others[1:], top[1], all_blocks[2]]
    assert groups_to_join(mixed_up) == [all_blocks, top]
    assert groups_to_join(others) == []


def test_runs_that_share_too_little_are_refused(
    configs: list[RunConfig], splits: Splits, tmp_path: Path
) -> None:
    for other, said in (
        (replace(configs[1], method=Head()), "head trains parameters of the model itself"),
        (replace(configs[1], head=HeadConfig("mean")), "share the model, the texts and the kind"),
        (replace(configs[1], settings=replace(SETTINGS, batch_size=4)), "share batch_size"),
    ):
        with pytest.raises(UsageError, match=said):
            jointly([configs[0], other], splits, tmp_path)
    assert not list(tmp_path.iterdir())
