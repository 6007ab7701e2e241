"""Runs on quantised base weights: the whole course, resumed, jointly; and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from deltafit.adapters import QUANTISED, read_adapter
from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.comparison import compare
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.prediction.folder import load_saved
from deltafit.training.config import RunConfig
from deltafit.training.interruption import Interrupted
from deltafit.training.run import RunResult
from deltafit.training.settings import BaseWeights, DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data, train
from tests.training.test_joined_run import (
    assert_same_figures,
    assert_same_files,
    jointly,
    single,
)
from tests.training.test_resume import SETTINGS as RESUMED
from tests.training.test_resume import STEPS, InterruptAt, assert_same_run, go
from tests.training.tiny_runs import save_model, tables, write_table

SETTINGS = TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=1e-2)

kinds = pytest.mark.parametrize("kind", QUANTISED)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return tables(tmp_path_factory.mktemp("data"), held_out=12)


def run(
    model: str,
    data: DataConfig,
    folder: Path,
    kind: str,
    method: Method = LoRA(rank=2),
    **more: object,
) -> RunResult:
    settings = replace(SETTINGS, base_weights=kind, **more)  # type: ignore[arg-type]
    return train(model, data, folder, method=method, settings=settings)


def test_the_choices_are_what_can_be_quantised() -> None:
    assert get_args(BaseWeights) == ("float32", *QUANTISED)
    with pytest.raises(UsageError, match="base_weights must be one of float32, int8, nf4; got 4"):
        TrainingSettings(base_weights=4)  # type: ignore[arg-type]  # what it is about


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("method", [LoRA(rank=2), LoRA("all-linear", rank=2, layers=(-1,)), Head()])
def test_a_run_learns_and_proves_itself(
    model: str, data: DataConfig, tmp_path: Path, kind: str, method: Method
) -> None:
    result = run(model, data, tmp_path / "run", kind, method)
    saved = load_saved(result.folder)
    assert saved.canary_difference == 0 and saved.facts["base"]["weights"] == kind
    plain = run(model, data, tmp_path / "plain", "float32", method)
    assert load_saved(plain.folder).facts["base"]["weights"] == "float32"
    # The base is counted as it is, and is another than the one in float32.
    for key in ("trainable_parameters", "total_parameters"):
        assert result.metrics["costs"][key] == plain.metrics["costs"][key]
    assert result.metrics["packed"] == plain.metrics["packed"]
    assert result.metrics["before"] != plain.metrics["before"]
    first, *_, last = [entry["train_loss"] for entry in result.metrics["history"]]
    assert last < first
    assert saved.facts["base"]["tensors"] == load_saved(plain.folder).facts["base"]["tensors"]


@pytest.mark.slow
@kinds
def test_bf16_leaves_it_in_float32(model: str, data: DataConfig, tmp_path: Path, kind: str) -> None:
    asked = run(model, data, tmp_path / "bf16", kind, precision="bf16", epochs=1)
    assert asked.metrics["precision"] == "float32"
    pinned = run(model, data, tmp_path / "float32", kind, precision="float32", epochs=1)
    assert asked.metrics["after"] == pinned.metrics["after"]


@pytest.mark.slow
@kinds
def test_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = save_model(tmp_path / "model", dropout=True), write_table(tmp_path / "texts.csv", 45)
    settings = replace(RESUMED, base_weights=kind)  # type: ignore[arg-type]  # of QUANTISED
    whole = go(inputs, tmp_path / "whole", settings=settings)
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        go(inputs, stopped, settings=settings, reporter=InterruptAt(STEPS // 2))
    with pytest.raises(UsageError, match=r"base_weights was '.*' there and is 'float32' now"):
        go(inputs, stopped, settings=RESUMED, resume=True)
    assert_same_run(go(inputs, stopped, settings=settings, resume=True), whole)
    torch.set_num_threads(threads)


@pytest.mark.slow
@kinds
def test_jointly_is_as_alone(model: str, data: DataConfig, tmp_path: Path, kind: str) -> None:
    settings = replace(SETTINGS, base_weights=kind)  # type: ignore[arg-type]  # of QUANTISED
    configs = [
        RunConfig(model, data, LoRA(rank=2), settings=settings),
        RunConfig(model, data, LoRA("all-linear", rank=3), settings=replace(settings, seed=1)),
    ]
    splits = load_data(data)
    together = jointly(configs, splits, tmp_path / "jointly")
    for number, config in enumerate(configs):
        alone = single(config, splits, tmp_path / f"alone{number}")
        joined = together[number]
        assert isinstance(joined, RunResult)
        assert_same_files(joined.folder, alone.folder)
        assert_same_figures(joined.metrics, alone.metrics)
        assert load_saved(joined.folder).canary_difference == 0
    other = replace(configs[1], settings=replace(SETTINGS, base_weights="float32"))
    with pytest.raises(UsageError, match="share base_weights; it is"):
        jointly([configs[0], other], splits, tmp_path / "other")


def test_methods_that_train_the_base_are_refused(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    for method in (Full(), LastBlocks(1)):
        with pytest.raises(UsageError, match=rf"{method.command_line_name} trains the base's own"):
            run("nowhere", DataConfig("nothing.csv"), tmp_path / "run", "nf4", method)
    with pytest.raises(
        UsageError, match="full trains the base's own weights, which --base-weights"
    ):
        compare(
            model, data, tmp_path / "run", methods=["lora", "full"],
            settings=replace(SETTINGS, base_weights="int8"),
        )  # fmt: skip
    whole = LoRA(rank=2, trained_modules=("bert.encoder.layer.0",))
    with pytest.raises(DeltafitError, match="is quantised, and what is stored in few bits cannot"):
        run(model, data, tmp_path / "run", "nf4", whole)
    assert not (tmp_path / "run").exists()


def test_models_without_linear_layers_and_without_the_library_are_refused(
    model: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_convolutions = save_model(tmp_path / "gpt2", "gpt2")
    monkeypatch.setattr("deltafit.training.train.execute", None)  # nothing is loaded
    with pytest.raises(DeltafitError, match="no linear layers in its blocks"):
        run(of_convolutions, data, tmp_path / "run", "int8")
    monkeypatch.setattr("deltafit.adapters.quantising.find_spec", lambda name: None)
    with pytest.raises(DeltafitError, match=r"pip install 'deltafit\[quantised\]'"):
        run(model, data, tmp_path / "run", "int8")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_head_that_starts_from_a_probe(model: str, data: DataConfig, tmp_path: Path) -> None:
    settings = replace(SETTINGS, base_weights="nf4", epochs=1)
    result = train(
        model, data, tmp_path / "run",
        method=LoRA(rank=2), head=HeadConfig("mean", "probe"), settings=settings,
    )  # fmt: skip
    assert load_saved(result.folder).canary_difference == 0


LOFTQ = LoRA("all-linear", rank=2, initialisation="loftq")


@pytest.mark.slow
@kinds
def test_loftq_starts_alike_alone_and_jointly(
    model: str, data: DataConfig, tmp_path: Path, kind: str
) -> None:
    settings = replace(SETTINGS, base_weights=kind)  # type: ignore[arg-type]  # of QUANTISED
    configs = [
        RunConfig(model, data, method, settings=settings) for method in (LOFTQ, LoRA(rank=3))
    ]
    splits = load_data(data)
    # Of the untouched base, whichever of them comes first.
    before = single(configs[1], splits, tmp_path / "plain").metrics["before"]
    alone = single(configs[0], splits, tmp_path / "alone")
    together = jointly(configs, splits, tmp_path / "jointly")
    joined = together[0]
    assert isinstance(joined, RunResult) and isinstance(together[1], RunResult)
    assert_same_files(joined.folder, alone.folder)
    assert_same_figures(joined.metrics, alone.metrics)
    for metrics in (alone.metrics, joined.metrics, together[1].metrics):
        assert metrics["before"] == before
    for result in (joined, alone):
        assert load_saved(result.folder).canary_difference == 0
        assert read_adapter(result.folder / "adapter").corrects == kind
    assert read_adapter(together[1].folder / "adapter").corrects is None


def test_loftq_without_rounding_is_refused(model: str, data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in float32 they lose nothing\. Add --base-weights nf4"):
        run(model, data, tmp_path / "run", "float32", LOFTQ)
    embeddings = LoRA(("word_embeddings",), rank=2, initialisation="loftq")
    with pytest.raises(DeltafitError, match="none of its targets is stored so"):
        run(model, data, tmp_path / "run", "nf4", embeddings)
    assert not (tmp_path / "run").exists()
