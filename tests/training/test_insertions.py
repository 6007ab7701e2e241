"""Insertions in runs: joined with others, without the base's dropout, and their memory foretold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltafit.errors import UsageError
from deltafit.experiments.comparison import compare, folder_name
from deltafit.files import read_json
from deltafit.methods import Bottleneck, LoRA, Method, Prefix, Prompt
from deltafit.training.config import RunConfig
from deltafit.training.joined_run import execute_jointly, groups_to_join
from deltafit.training.progress import Silent
from deltafit.training.run import execute
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.train import load_data
from tests.training.joined_runs import Plan, alone, joined_loop, trained
from tests.training.test_costs import foretold
from tests.training.test_loop import assert_same, train
from tests.training.test_modes import OFF
from tests.training.tiny_runs import save_model, tables

SETTINGS = TrainingSettings(epochs=3, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["on", "off"])
def test_bottlenecks_train_jointly_as_alone(tmp_path: Path, packing: str) -> None:
    model = save_model(tmp_path / "model")
    settings = replace(SETTINGS, packing=packing)  # type: ignore[arg-type]
    plans = {
        "bottleneck": Plan(settings, Bottleneck(size=4)),
        "lora": Plan(replace(settings, seed=1), LoRA(rank=2)),
        "one": Plan(replace(settings, seed=2), Bottleneck(size=3, variant="pfeiffer")),
    }
    found = trained(joined_loop(model, tmp_path / "jointly", plans))
    for name, plan in plans.items():
        expected, _ = alone(model, tmp_path / name, plan)
        assert found[name].keys() == expected.keys()
        for tensor, value in expected.items():
            torch.testing.assert_close(found[name][tensor], value, rtol=0, atol=1e-5, msg=tensor)


@pytest.mark.parametrize("method", [Bottleneck(size=4), Prefix(count=2), Prompt(count=2)], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_they_train_packed_as_padded(tmp_path: Path, architecture: str, method: Method) -> None:
    model = save_model(tmp_path / "model", architecture)
    on, off = (
        train(model, tmp_path / packing, replace(SETTINGS, packing=packing), method)  # type: ignore[arg-type]
        for packing in ("on", "off")
    )
    assert_same(on, off, tolerance=1e-4)


def test_which_insertions_are_joined(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    methods: list[Method] = [Bottleneck(size=4), Prefix(), LoRA(), Prompt()]
    methods.append(Bottleneck(layers=(-1,)))
    configs = [RunConfig(model, DataConfig("d"), method, settings=SETTINGS) for method in methods]
    assert groups_to_join(configs) == [[configs[0], configs[2]]]
    with pytest.raises(UsageError, match="prefix has virtual tokens"):
        execute_jointly(configs[:2], None, [tmp_path], reporter=Silent())  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Bottleneck(size=4), Prefix(count=2), Prompt(count=2)], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_bases_dropout_can_be_off(tmp_path: Path, architecture: str, method: Method) -> None:
    dropping = save_model(tmp_path / "dropping", architecture, dropout=True)
    without = save_model(tmp_path / "without", architecture)
    off = train(dropping, tmp_path / "a", OFF, method, head="mean")
    plain = train(
        without, tmp_path / "b", replace(OFF, base_dropout="configured"), method, head="mean"
    )
    assert_same(off, plain)


def test_the_memory_of_the_blocks_is_foretold(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    lora = foretold(model, LoRA("all-linear", rank=2))
    for method in (Bottleneck(size=4), Prefix(count=2), Prompt(count=2)):
        found = foretold(model, method)
        assert 0.5 * lora["activations"] < found["activations"] < 1.5 * lora["activations"]
    top = foretold(model, Prefix(count=2, layers=(-1,)))
    assert 0 < top["activations"] < 0.5 * lora["activations"]


@pytest.mark.slow
def test_virtual_tokens_take_positions_from_texts(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), tables(tmp_path)  # of 64 positions
    settings = TrainingSettings(epochs=1, batch_size=8, max_length=32)
    config = RunConfig(model, data, Prompt(count=60), settings=settings)
    splits = load_data(data)
    execute(config, splits, tmp_path / "run", reporter=Silent())
    assert read_json(tmp_path / "run" / "adapter" / "deltafit.json")["max_length"] == 4
    with pytest.raises(UsageError, match="takes all positions"):
        execute(replace(config, method=Prompt(count=64)), splits, tmp_path / "b", reporter=Silent())
    with pytest.raises(UsageError, match="takes all positions"):  # before anything is trained
        compare(model, data, tmp_path / "c", methods=("lora", "prompt:count=64"))
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_before_training_is_measured_on_the_texts_that_a_method_is_given(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), tables(tmp_path)
    settings = TrainingSettings(epochs=1, batch_size=8, max_length=32)
    methods = (Prompt(count=62), LoRA(rank=2))
    compare(model, data, tmp_path / "both", methods=methods, settings=settings)
    for method in methods:
        run = RunConfig(model, data, method, settings=settings)
        execute(run, load_data(data), tmp_path / method.result_name, reporter=Silent())
        alone = read_json(tmp_path / method.result_name / "metrics.json")
        beside = read_json(tmp_path / "both" / "runs" / folder_name(run) / "metrics.json")
        for key in ("before", "after", "run_hash"):
            assert alone[key] == beside[key], (method, key)
