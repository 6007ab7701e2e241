"""Runs that adapt convolutions among a model's linear layers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deltafit.adapters.activations import activation_values
from deltafit.adapters.structure import repeated_blocks
from deltafit.cli import app
from deltafit.methods import LoKr, LoRA, Method, VeRA
from deltafit.training.settings import TrainingSettings
from tests import tiny_models
from tests.tiny_models import CONVOLUTIONAL, tiny_model
from tests.training.joined_runs import Plan, alone, joined_loop, trained
from tests.training.tiny_runs import save_model, write_table

TARGETS = ("conv.conv",)


@pytest.fixture(scope="module")
def convbert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("convbert"), "convbert")


def test_joined_runs_come_out_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ConvBERT sees padding, of which a joined pass has other amounts; DeBERTa sees zeros there.
    for setting, value in (("conv_kernel_size", 3), ("conv_act", "gelu")):
        monkeypatch.setitem(tiny_models._SETTINGS["deberta-v2"], setting, value)
    model = save_model(tmp_path / "model", "deberta-v2")
    settings = TrainingSettings(epochs=2, batch_size=8, packing="off")
    methods: dict[str, Method] = {
        "lora": LoRA(TARGETS, rank=2), "dense": LoKr(TARGETS, rank=2), "vera": VeRA(TARGETS, rank=8)
    }  # fmt: skip
    plans = {
        name: Plan(replace(settings, seed=seed), method)
        for seed, (name, method) in enumerate(methods.items())
    }
    together = trained(joined_loop(model, tmp_path, plans))
    for name, plan in plans.items():
        expected, _ = alone(model, tmp_path / name, plan)
        assert together[name].keys() == expected.keys()
        for tensor, value in expected.items():
            torch.testing.assert_close(together[name][tensor], value, rtol=0, atol=1e-5)


def test_the_commands(convbert: str, tmp_path: Path) -> None:
    method = "lora:target_modules=depthwise+pointwise,rank=2,dropout=0.2,initialisation=eva"
    folder, table = str(tmp_path / "run"), write_table(tmp_path / "data.csv", 40)
    commands = [
        ["train", "--model", convbert, "--data", table, "--validation", "0.2", "--method", method,
         "--epochs", "2", "--output", folder],
        ["verify", folder],
        ["merge", folder, "--output", str(tmp_path / "merged")],
        ["extract", folder, "--rank", "4", "--tolerance", "9", "--output", str(tmp_path / "lora")],
    ]  # fmt: skip
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output


def test_what_convolutions_keep_for_the_backward_pass_is_counted() -> None:
    (architecture,) = CONVOLUTIONAL
    model = tiny_model(architecture)
    stacks = repeated_blocks(model)
    block = f"{stacks[0].blocks[1]}.attention.self"
    names = [f"{block}.{name}" for name in ("query", "key_conv_attn_layer.depthwise")]
    kept = [activation_values(model, stacks, 0, (name,), 2) for name in names]
    # Both read the block's input, and have one A·x of two values.
    assert kept[0] == kept[1] and len(kept[0]) == 2
    both = activation_values(model, stacks, 0, tuple(names), 2)
    # Whatever reads it: the linear layer's and the convolution's own.
    assert both[stacks[0].blocks[1]] == kept[0][stacks[0].blocks[1]] + 32 + 2
