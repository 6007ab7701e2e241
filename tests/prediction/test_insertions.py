"""A saved insertion proves itself, predicts unmerged, is shown, and is refused by ``merge``."""

from pathlib import Path

import pytest
import torch

from deltafit.errors import DeltafitError
from deltafit.methods import Bottleneck, Insertion, Prefix, Prompt
from deltafit.prediction.combining import combine
from deltafit.prediction.extracting import extract
from deltafit.prediction.folder import load_saved
from deltafit.prediction.inspecting import AdapterInspection, inspect
from deltafit.prediction.merging import merge
from deltafit.prediction.truncating import truncate
from deltafit.prediction.using import predict
from tests.prediction.test_folder import logits, saved
from tests.training.tiny_runs import tiny_texts

METHODS = (Bottleneck(size=4), Prefix(count=3), Prompt(count=3))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("head", ["architecture", "mean"])
def test_a_fresh_load_gives_the_very_logits(tmp_path: Path, method: Insertion, head: str) -> None:
    classifier = saved(tmp_path, method, head)
    found = load_saved(tmp_path / "adapter")
    assert torch.equal(logits(found.classifier), logits(classifier))
    assert found.canary_difference == 0 and not found.notes


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_many_texts_are_predicted_without_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Insertion
) -> None:
    monkeypatch.delattr("deltafit.prediction.merged.merged")
    saved(tmp_path, method)
    loaded = load_saved(tmp_path / "adapter")
    texts = [text for text, _ in tiny_texts(600, seed=2)]  # more tokens than LoRA is merged for
    found = [prediction.probability for prediction in predict(loaded, texts)]
    alone = [prediction.probability for text in texts[:5] for prediction in predict(loaded, [text])]
    assert found[:5] == pytest.approx(alone, abs=1e-5) and len(found) == 600


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_is_shown_and_not_merged(tmp_path: Path, method: Insertion) -> None:
    saved(tmp_path, method)
    found = inspect(tmp_path / "adapter")
    assert isinstance(found, AdapterInspection)
    assert found.changes == () and set(found.replaced) == {"classifier.weight", "classifier.bias"}
    shapes = set(found.inserted.values())
    # BERT's 3 blocks, 32 wide: four tensors in each of two places, two in one, or one for all.
    wanted = {(4, 32), (4,), (32, 4), (32,)} if isinstance(method, Bottleneck) else {(3, 32)}
    assert shapes == wanted and len(found.inserted) in (24, 6, 1)
    adapter, output = tmp_path / "adapter", tmp_path / "output"
    with pytest.raises(DeltafitError, match="cannot be merged"):
        merge(adapter, output)
    with pytest.raises(DeltafitError, match="cannot be merged"):
        extract(adapter, output, rank=2)
    with pytest.raises(DeltafitError, match="which no Δ of its weights could do"):
        truncate(adapter, output, rank=2)
    with pytest.raises(DeltafitError, match="which no Δ of its weights could do"):
        combine([adapter, adapter], output)
    assert not output.exists()
