"""``train`` from a model and a table to a folder, for every method and head."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from deltafit.adapters import read_adapter
from deltafit.data import resolve_model
from deltafit.errors import DeltafitError, UsageError
from deltafit.files import read_tensors
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.prediction.folder import load_saved
from deltafit.tasks.classification import HeadSettings, load_classifier
from deltafit.training.config import RunConfig
from deltafit.training.features import FrozenFeatures
from deltafit.training.progress import Silent
from deltafit.training.run import RunResult
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data, train
from tests.training.tiny_runs import LABELS, save_model, write_table

SETTINGS = TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), dropout=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    return DataConfig(
        write_table(folder / "train.csv"), write_table(folder / "test.csv", 20, seed=5), "0.2"
    )


def expected_names(model: str, method: Method) -> set[str]:
    plain = load_classifier(resolve_model(model), LABELS, HeadSettings(), seed=0)
    names = {name for name, _ in plain.model.named_parameters()}
    head = set(plain.head_parameters)
    if isinstance(method, Full):
        return names
    if isinstance(method, LastBlocks):
        return head | {name for name in names if ".layer.2." in name}
    return head


@pytest.mark.slow
@pytest.mark.parametrize("method", [Full(), Head(), LastBlocks(1), LoRA(rank=2)])
def test_every_method_leaves_a_whole_run(
    model: str, data: DataConfig, tmp_path: Path, method: Method
) -> None:
    base = Path(model, "model.safetensors").read_bytes()
    result = train(model, data, tmp_path / "run", method=str(method), settings=SETTINGS)

    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["judged_on"] == "test" and metrics["head"] == "architecture"
    assert metrics["before"].keys() == {"validation", "test"}
    assert metrics["after"].keys() == {"validation", "test"}
    config = json.loads((result.folder / "run.json").read_text())["config"]
    assert RunConfig.from_dict(config) == RunConfig(model, data, method, HeadConfig(), SETTINGS)

    # Nothing but what the method trains was kept, and it moved.
    stored = read_adapter(result.folder / "adapter")
    assert set(stored.replaced) == expected_names(model, method)
    start = dict(
        load_classifier(
            resolve_model(model), LABELS, HeadSettings(), seed=0
        ).model.named_parameters()
    )
    assert all(not torch.equal(stored.tensors[name], start[name]) for name in stored.replaced)
    assert Path(model, "model.safetensors").read_bytes() == base

    # A fresh load gives the logits that the run was judged by.
    tensors = read_tensors(result.folder / "predictions.safetensors")
    accuracy = (tensors["test/logits"].argmax(1) == tensors["test/labels"]).double().mean()
    assert float(accuracy) == pytest.approx(metrics["after"]["test"]["accuracy"])
    assert load_saved(result.folder).canary_difference < 1e-6

    costs = metrics["costs"]
    assert costs["trainable_parameters"] == sum(t.numel() for t in stored.tensors.values())
    added = sum(t.numel() for n, t in stored.tensors.items() if n not in stored.replaced)
    assert costs["total_parameters"] == sum(p.numel() for p in start.values()) + added
    assert costs["examples_seen"] == 2 * 36 and costs["examples_per_second"] > 0
    assert costs["saved_bytes"] > costs["adapter_tensor_bytes"] > 0
    assert costs["peak_memory_bytes"] > 50 << 20


@pytest.mark.slow
def test_lora_learns_the_words(data: DataConfig, tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=12, batch_size=8, learning_rate=1e-2)
    alone = DataConfig(data.data, validation="none")
    model = save_model(tmp_path / "model", dropout=False)
    metrics = train(
        model, alone, tmp_path / "run", method="lora:target_modules=all-linear", settings=settings
    ).metrics
    assert metrics["after"]["train"]["accuracy"] > 0.9


@pytest.mark.slow
def test_the_best_evaluation_is_what_is_kept(model: str, data: DataConfig, tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=6, batch_size=8, learning_rate=1e-2, metric="log_loss")
    metrics = train(model, data, tmp_path / "run", settings=settings).metrics
    losses = {entry["step"]: entry["log_loss"] for entry in metrics["history"]}
    assert metrics["best_step"] == min(losses, key=lambda step: losses[step])
    assert metrics["after"]["validation"]["log_loss"] == pytest.approx(min(losses.values()))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["deberta-v2", "gpt2"])
def test_other_architectures(data: DataConfig, tmp_path: Path, architecture: str) -> None:
    model = save_model(tmp_path / "model", architecture)
    for head in (HeadConfig(), HeadConfig("mean", "probe")):
        folder = tmp_path / head.head
        metrics = train(model, data, folder, head=head, settings=SETTINGS).metrics
        assert metrics["after"]["test"]["count"] == 20
        assert load_saved(folder).canary_difference < 1e-6


def run_head(model: str, data: DataConfig, folder: Path, head: HeadConfig) -> RunResult:
    return train(model, data, folder, method=Head(), head=head, settings=SETTINGS)


@pytest.mark.slow
def test_a_head_from_a_probe_starts_where_the_probe_ends(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    metrics = run_head(model, data, tmp_path / "run", HeadConfig("mean", "probe", 0.2)).metrics
    features = FrozenFeatures(model, load_data(data), 12, Silent())
    probe = features.probe("mean")
    assert metrics["before"]["validation"]["accuracy"] == probe.validation_accuracy
    right = probe.logits(features.features["test"]["mean"]).argmax(1) == np.array(
        features.splits.parts()["test"].labels
    )
    assert metrics["before"]["test"]["accuracy"] == pytest.approx(right.mean())


def test_a_new_pooled_head_starts_without_knowledge(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    metrics = run_head(model, data, tmp_path / "run", HeadConfig("last")).metrics
    assert metrics["before"]["test"]["log_loss"] == pytest.approx(np.log(3))


@pytest.mark.slow
def test_auto_takes_the_pooling_whose_probe_does_best(
    model: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = run_head(model, data, tmp_path / "run", HeadConfig("auto")).metrics
    features = FrozenFeatures(model, load_data(data), 12, Silent())
    figures = {p: features.probe(p).validation_accuracy for p in ("cls", "mean", "last")}  # type: ignore[arg-type]  # literals
    assert figures[metrics["head"]] == max(figures.values())


def test_auto_on_a_decoder_never_takes_its_first_token(data: DataConfig, tmp_path: Path) -> None:
    features = FrozenFeatures(save_model(tmp_path, "gpt2"), load_data(data), 12, Silent())
    assert "cls" not in features.features["train"]
    assert features.best_pooling() in ("mean", "last")


@pytest.mark.slow
def test_without_validation_the_last_step_counts(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    alone = DataConfig(data.data, validation="none")
    metrics = train(model, alone, tmp_path / "run", method=Head(), settings=SETTINGS).metrics
    assert metrics["judged_on"] is None and metrics["best_step"] is None
    assert metrics["after"].keys() == {"train"}
    assert metrics["history"][-1].keys() == {"step", "epoch", "train_loss"}


@pytest.mark.slow
def test_truncation_is_counted_and_said(model: str, data: DataConfig, tmp_path: Path) -> None:
    class Listening(Silent):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def say(self, sentence: str) -> None:
            self.heard.append(sentence)

    listening = Listening()
    settings = TrainingSettings(epochs=1, batch_size=8, max_length=5)
    metrics = train(
        model, data, tmp_path / "run", method=Head(), settings=settings, reporter=listening
    ).metrics
    lengths = [len(t.split()) for p in load_data(data).parts().values() for t in p.texts]
    cut = sum(length > 5 for length in lengths)
    assert sum(metrics["truncated"].values()) == cut > 0
    sentence = f"{cut / len(lengths):.1%} of texts ({cut}) were cut to 5 tokens."
    assert sentence in listening.heard


def test_a_run_that_fails_at_once_leaves_no_folder(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    settings = TrainingSettings(epochs=9, batch_size=8, learning_rate=1e8, clip=None)
    folder = tmp_path / "logs" / "run"  # the name that a tracker's folder would have
    with pytest.raises(DeltafitError, match="diverged"):
        train(model, data, folder, method=Full(), settings=settings)
    assert not folder.exists()


def test_a_run_that_fails_later_keeps_its_checkpoints(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    class Failing(Silent):
        def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
            if loss is not None and done == 7:  # after the first epoch's checkpoint
                raise ZeroDivisionError

    folder = tmp_path / "logs" / "run"
    with pytest.raises(ZeroDivisionError):
        train(model, data, folder, settings=SETTINGS, reporter=Failing())
    assert (folder / "checkpoints" / "step-00000005").is_dir()
    with pytest.raises(DeltafitError, match="has not finished"):
        load_saved(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"learning_rate": -1.0}, "learning_rate must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"warmup": 1.0}, "warmup must be"),
        ({"schedule": "step"}, "schedule must be one of linear, cosine, constant"),
        ({"metric": "bleu"}, "no metric 'bleu'"),
        ({"patience": 0}, "patience must be"),
        ({"epochs": True}, "epochs must be"),
    ],
)
def test_settings_out_of_range_are_one_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        TrainingSettings(**change)  # type: ignore[arg-type]  # the point


def test_the_architectures_own_head_takes_no_probe() -> None:
    with pytest.raises(UsageError, match="cls, mean, last or auto"):
        HeadConfig("architecture", "probe")
    with pytest.raises(UsageError, match="dropout"):
        HeadConfig("mean", "new", 1.5)


@pytest.mark.parametrize(
    ("method", "asked", "head", "expected"),
    [
        (LoRA(), {}, HeadConfig(), 5e-3),
        (LoRA(), {}, HeadConfig("mean"), 5e-3),
        (LoRA(), {}, HeadConfig("mean", "probe"), 5e-4),
        (LoRA(), {"learning_rate": 5e-4}, HeadConfig(), 5e-3),
        (LoRA(), {"learning_rate": 2e-5}, HeadConfig(), 5e-3),
        (LoRA(), {"learning_rate": 1e-2}, HeadConfig(), 1e-2),
        (LoRA(), {"head_learning_rate": 1e-3}, HeadConfig("mean", "probe"), 1e-3),
        (LoRA(), {"learning_rate": 1e-2, "head_learning_rate": 1e-3}, HeadConfig(), 1e-3),
        (Full(), {}, HeadConfig(), 5e-3),
        (Head(), {}, HeadConfig(), 5e-3),
        (Head(), {"learning_rate": 1e-3}, HeadConfig(), 1e-3),
    ],
)
def test_a_new_head_has_the_rate_of_a_head_alone(
    method: Method, asked: dict[str, float], head: HeadConfig, expected: float
) -> None:
    config = RunConfig("minilm", DataConfig("imdb"), method, head, TrainingSettings(**asked))  # type: ignore[arg-type]
    assert config.head_learning_rate == expected
    new = config.decided_settings(new_head=True)
    assert (new.learning_rate, new.head_learning_rate) == (config.learning_rate, expected)
    finished = config.decided_settings(new_head=False)
    assert finished.head_learning_rate == asked.get("head_learning_rate", config.learning_rate)


def head_of(folder: Path, model: str, data: DataConfig, **rates: float | None) -> dict[str, object]:
    """Train; return the head's tensors and the rate that its metrics tell."""
    settings = replace(SETTINGS, **{"learning_rate": None, **rates})  # type: ignore[arg-type]
    result = train(model, data, folder, method="lora:rank=2", settings=settings)
    tensors = read_tensors(result.folder / "adapter" / "adapter_model.safetensors")
    heads = {name: tensor.tolist() for name, tensor in tensors.items() if "lora_" not in name}
    return {**heads, "rate": result.metrics["head_learning_rate"]}


def test_the_decided_rate_is_what_trains(model: str, data: DataConfig, tmp_path: Path) -> None:
    default = head_of(tmp_path / "default", model, data)
    same = head_of(tmp_path / "same", model, data, learning_rate=5e-4, head_learning_rate=5e-3)
    other = head_of(tmp_path / "other", model, data, head_learning_rate=5e-4)
    assert default == same != other
    assert default["rate"] == 5e-3 and other["rate"] == 5e-4


def test_a_finished_head_follows_the_method(data: DataConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    finished = tmp_path / "finished"
    shape = {"num_labels": len(LABELS)}
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(save_model(finished), **shape)
    )
    model.save_pretrained(finished)
    default = head_of(tmp_path / "default", str(finished), data)
    asked = head_of(tmp_path / "asked", str(finished), data, head_learning_rate=5e-4)
    other = head_of(tmp_path / "other", str(finished), data, head_learning_rate=5e-3)
    assert default == asked != other
    assert default["rate"] == 5e-4
