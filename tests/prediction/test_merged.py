"""Predictions with the adapter in the weights are those without, and leave nothing behind."""

import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from deltafit.adapters import merge, model_adapters
from deltafit.methods import Full, LoRA, Method
from deltafit.prediction import merged
from deltafit.prediction.folder import SavedClassifier, load_saved
from deltafit.prediction.using import Done, evaluate, predict
from tests.adapters.adapted import anatomy
from tests.prediction.test_folder import saved
from tests.training.tiny_runs import tiny_texts, write_table

TEXTS = [text for text, _ in tiny_texts(20)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "_LEAST_TOKENS", 10)
    monkeypatch.setattr("deltafit.prediction.using._TEXTS_AT_ONCE", 8)


def load(folder: Path, method: Method | None = None) -> SavedClassifier:
    torch.manual_seed(0)
    saved(folder, method or LoRA("all-linear", rank=2))
    return load_saved(folder / "adapter")


class Watch:
    """Takes the word between passes, and sees whether the adapter is merged."""

    def __init__(self, found: SavedClassifier) -> None:
        self.model = found.classifier.model
        self.merged: list[bool] = []

    def __call__(self, done: Done) -> None:
        self.merged.append(model_adapters(self.model).merged is not None)


def probabilities(found: SavedClassifier, watch: Watch) -> list[list[float]]:
    predictions = list(predict(found, TEXTS, progress=watch))
    return [list(prediction.probabilities.values()) for prediction in predictions]


def test_merged_is_unmerged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(tmp_path)
    before, watch, plain = anatomy(found.classifier.model), Watch(found), Watch(found)
    predictions = probabilities(found, watch)
    assert watch.merged == [False, True, True, True]  # before the first pass, and after each
    assert anatomy(found.classifier.model) == before
    table = write_table(tmp_path / "texts.csv", 20)
    metrics = evaluate(found, table, progress=watch)
    assert watch.merged[-1] and anatomy(found.classifier.model) == before

    monkeypatch.setattr(merged, "_LEAST_TOKENS", 10**9)
    np.testing.assert_allclose(predictions, probabilities(found, plain), rtol=0, atol=1e-5)
    assert metrics["log_loss"] == pytest.approx(evaluate(found, table)["log_loss"], abs=1e-5)
    assert not any(plain.merged)


def test_between_predictions_nothing_is_merged(tmp_path: Path) -> None:
    found = load(tmp_path)
    before, watch = anatomy(found.classifier.model), Watch(found)
    predictions = predict(found, TEXTS, progress=watch)
    for _ in range(10):  # in the second chunk
        next(predictions)
        assert anatomy(found.classifier.model) == before
    assert any(watch.merged)
    predictions.close()  # type: ignore[attr-defined]  # a generator
    assert anatomy(found.classifier.model) == before


def test_a_failure_inside_leaves_nothing_merged(tmp_path: Path) -> None:
    found = load(tmp_path)
    before = anatomy(found.classifier.model)

    def fail(done: Done) -> None:
        if done.texts:
            assert model_adapters(found.classifier.model).merged is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as failure:
        list(predict(found, TEXTS, progress=fail))
    assert failure.value.__traceback__ is not None  # nothing waits for it to be forgotten
    assert anatomy(found.classifier.model) == before


@pytest.mark.parametrize(
    "case", ["nothing to merge", "no memory", "half precision", "differs", "merged already"]
)
def test_where_it_does_not_pay_or_is_not_exact_nothing_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    found = load(tmp_path, Full() if case == "nothing to merge" else None)
    model = found.classifier.model
    if case == "no memory":
        monkeypatch.setattr(merged, "_LARGEST_SHARE", 0)
    elif case == "half precision":
        model.get_submodule("bert.encoder").to(torch.bfloat16)
        model.get_submodule("bert.encoder").register_forward_pre_hook(
            lambda module, args: (args[0].bfloat16(), *args[1:])
        )
        model.get_submodule("bert.encoder.layer.2").register_forward_hook(
            lambda module, args, output: output.float()
        )
    elif case == "differs":
        monkeypatch.setattr(merged, "TOLERANCE", -1.0)
    elif case == "merged already":
        merge(model)
    before, watch = anatomy(model), Watch(found)
    assert len(probabilities(found, watch)) == len(TEXTS)
    assert set(watch.merged) == {case == "merged already"}
    assert anatomy(model) == before
    assert ("gives other logits: it runs unmerged" in caplog.text) == (case == "differs")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "_LEAST_TOKENS", 10**9)  # merging for nine words takes long
    found = load(tmp_path)

    def peak(count: int) -> int:
        texts = (f"w{number % 50} w7 " + "x" * 50_000 for number in range(count))
        tracemalloc.start()
        try:
            assert sum(1 for _ in predict(found, texts)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(24), peak(120)
    assert few > 8 * 50_000  # a chunk of them
    assert many - few < 8 * 50_000 < 96 * 50_000


def test_nor_does_the_process(tmp_path: Path) -> None:
    """What torch holds shows in no Python object."""
    process, found = psutil.Process(), load(tmp_path)
    texts = (" ".join(["w7"] * 60) for _ in range(3000))
    sizes = [process.memory_info().rss for _ in predict(found, texts)]
    tokens = 60 * 2000 * 4  # bytes that one float a token would take of the last two thirds
    assert max(sizes[1000:]) - max(sizes[:1000]) < 10 * tokens
