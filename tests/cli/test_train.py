"""``deltafit train``: what its flags ask for is what is run, and what it leaves and says."""

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from deltafit import DataConfig, HeadConfig, LoRA, TrainingSettings
from deltafit.files import read_json
from deltafit.methods import METHODS, parse_method
from deltafit.training.config import RunConfig
from tests.cli.commands import Tiny, deltafit, done, refused


def test_a_run_holds_what_was_asked(tiny: Tiny) -> None:
    assert {path.name for path in tiny.run.iterdir()} == {
        *("run.json", "metrics.json", "predictions.safetensors", "checkpoints", "adapter"),
    }
    asked = RunConfig.from_dict(read_json(tiny.run / "run.json")["config"])
    assert asked == RunConfig(
        tiny.model,
        DataConfig(tiny.train, tiny.test, "0.2"),
        LoRA(rank=2),
        HeadConfig(),
        TrainingSettings(epochs=2, batch_size=8, learning_rate=0.01, max_length=12),
    )


@pytest.mark.slow
def test_what_is_printed_is_what_was_measured(tiny: Tiny, tmp_path: Path) -> None:
    result = deltafit("train", *tiny.start(tmp_path / "run"), "--method", "head")
    metrics = read_json(tmp_path / "run" / "metrics.json")
    for part in ("validation", "test"):
        line = next(line for line in result.stdout.splitlines() if line.startswith(part))
        after = metrics["after"][part]
        figures = [metrics["before"][part]["accuracy"], after["accuracy"], after["macro_f1"]]
        assert [f"{figure:.4f}" for figure in figures] == [line.split()[i] for i in (2, 3, 5)]
    assert str(tmp_path / "run" / "adapter") in result.stdout
    assert "Trained 99 of " in result.stdout  # 3 classes × 32 features, and 3 biases
    assert "examples/s, in float32; peak memory" in result.stdout
    assert "training: 10/10  loss" in result.stderr and "examples/s" in result.stderr


def test_duplicates_in_the_data_are_said(tiny: Tiny, tmp_path: Path) -> None:
    words = tiny.start(tmp_path / "run")
    words[words.index(tiny.test)] = tiny.train
    text = done("train", *words, "--method", "head")
    assert "36 of 45 test texts also stand in training" in text  # all but the validation rows
    without = read_json(tmp_path / "run" / "metrics.json")["after"]["test"]["without_duplicates"]
    share = f"Without the 36 test rows that also stand in training: {without['accuracy']:.4f}."
    assert share in text and without["count"] == 9


@pytest.mark.parametrize("flag", ["rank", "alpha", "target-modules", "layers", "dropout"])
def test_loras_flags_are_its_settings(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    values = {
        **{"rank": "3", "alpha": "5.5", "target-modules": "query,key", "layers": "0,2"},
        **{"dropout": "0.25"},
    }
    given = _configs(monkeypatch)
    done("train", *tiny.start(tmp_path / "run"), f"--{flag}", values[flag])
    (config,) = given
    setting = flag.replace("-", "_")
    wanted = parse_method(f"lora:{setting}={values[flag].replace(',', '+')}")
    assert config.method == wanted != LoRA()


def test_every_setting_has_a_flag_that_sets_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltafit.cli.flags import flag_name

    wanted = {
        TrainingSettings: {
            **{"epochs": 1, "batch_size": 4, "accumulation": 2, "learning_rate": 0.5},
            **{"head_learning_rate": 0.25, "weight_decay": 0.125, "schedule": "cosine"},
            **{"warmup": 0.5, "label_smoothing": 0.25, "class_weights": "balanced", "clip": 2.5},
            **{"gradient_checkpointing": True, "precision": "bf16", "max_length": 7},
            **{"evaluate_every": 3, "metric": "macro_f1", "patience": 2, "seed": 9},
            **{"base_dropout": "off", "packing": "on", "base_weights": "int8"},
            "judge_training": True,
        },
        HeadConfig: {"head": "mean", "head_start": "probe", "head_dropout": 0.5},
        DataConfig: {
            **{"data": tiny.train, "test_data": tiny.test, "validation": "0.3"},
            **{"text_column": "text", "label_column": "label", "balance": True, "limit": 30},
            **{"split_seed": 4, "drop_duplicates": True},
        },
    }
    words: list[object] = ["--model", tiny.model, "--output", tmp_path / "run"]
    for kind, values in wanted.items():
        assert set(values) == {field.name for field in fields(kind)}
        for field in fields(kind):
            value = values[field.name]
            assert field.default is MISSING or value != field.default
            words += [flag_name(field.name)] if value is True else [flag_name(field.name), value]
    given = _configs(monkeypatch)
    done("train", *words)
    (config,) = given
    for part in (config.settings, config.head, config.data):
        assert part == type(part)(**wanted[type(part)])


@pytest.mark.parametrize(
    ("flag", "field"),
    [("--clip", "clip"), ("--lr", "learning_rate"), ("--patience", "patience")],
)
def test_none_can_be_typed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, field: str
) -> None:
    given = _configs(monkeypatch)
    done("train", *tiny.start(tmp_path / "run"), flag, "none")
    assert getattr(given[0].settings, field) is None


# One is nothing without a name.
@pytest.mark.parametrize(
    "text", [{"modules": "modules:pattern=layer.2"}.get(n, n) for n in METHODS]
)
def test_methods_by_name(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    given = _configs(monkeypatch)
    done("train", *tiny.start(tmp_path / "run"), "--method", text)
    assert given[0].method == parse_method(text)


@pytest.mark.slow
def test_trackers_are_repeatable(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done("train", *tiny.start(tmp_path / "run"), "--method", "head", "--track", "tensorboard")
    assert list((tmp_path / "run" / "logs").rglob("events.out.*"))


def test_a_finished_run_is_given_back_and_another_is_not(tiny: Tiny) -> None:
    words = [*tiny.start(tiny.run), "--rank", "2", "--lr", "0.01"]
    adapter = tiny.run / "adapter" / "adapter_model.safetensors"
    stamp = adapter.stat().st_mtime_ns
    assert "exists already. Add --resume" in refused(2, "train", *words)
    assert "Before and after" in done("train", *words, "--resume")
    sentence = refused(2, "train", *words, "--resume", "--seed", "3")
    assert "config.settings.seed was 0 there and is 3 now" in sentence
    assert adapter.stat().st_mtime_ns == stamp


def test_a_command_that_failed_can_be_corrected(tiny: Tiny, tmp_path: Path) -> None:
    words = [*tiny.start(tmp_path / "run"), "--method", "head"]
    sentence = refused(1, "train", *words, "--text-column", "review")
    assert "no column 'review'" in sentence and "'text', 'label'" in sentence
    refused(2, "train", *words, "--target-modules", "quarry", "--method", "lora")
    assert not (tmp_path / "run").exists()
    done("train", *words)


def test_without_held_out_rows_nothing_is_claimed(tiny: Tiny, tmp_path: Path) -> None:
    words = tiny.start(tmp_path / "run")
    del words[words.index("--test-data") : words.index("--test-data") + 2]
    words[words.index("0.2")] = "none"
    text = done("train", *words, "--method", "head")
    assert "No rows were held out" in text and "Before and after" in text


@pytest.mark.slow
def test_the_data_may_move_but_not_change(tiny: Tiny, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    shutil.copy(tiny.train, table)
    words = tiny.start(tmp_path / "run")
    words[words.index(tiny.train)] = str(table)
    done("train", *words, "--method", "head")
    table.write_text(table.read_text().replace("w30", "w31"))
    assert "holds another run" in refused(2, "train", *words, "--method", "head", "--resume")


def _configs(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Collect the configurations that are run, and give an old run's metrics for them."""
    import deltafit.training.train as module

    given: list[RunConfig] = []

    def finished(folder: Path) -> dict[str, object]:
        config = json.loads((folder / "run.json").read_text())["config"]
        given.append(RunConfig.from_dict(config))
        return _METRICS

    monkeypatch.setattr(module, "finished_metrics", finished)
    return given


_METRICS: dict[str, object] = {
    "before": {},
    "after": {},
    "judged_on": None,
    "precision": "float32",
    "attention_precision": None,
    "costs": {
        **{"trainable_parameters": 1, "total_parameters": 2, "share_trainable": 0.5},
        **{"training_seconds": 1.0, "examples_per_second": 1.0},
        **{"peak_memory_bytes": 1, "saved_bytes": 1},
    },
}
