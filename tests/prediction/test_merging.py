"""A merged checkpoint predicts the same without deltafit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from deltafit.adapters import layer_state, model_adapters
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import IA3, DoRA, Full, LoRA, Method
from deltafit.prediction.folder import load_saved
from deltafit.prediction.merging import merge
from deltafit.prediction.using import predict
from deltafit.tasks.classification import collate
from tests.prediction.test_folder import MAX_LENGTH, logits, saved
from tests.tiny_models import PAD
from tests.training.tiny_runs import LABELS, WORDS, tiny_texts, write_table

TEXTS = [text for text, _ in tiny_texts(7)]

PREDICT = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
texts = json.loads(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
batch.pop("token_type_ids", None)
with torch.no_grad():
    logits = model(**batch).logits
assert not any(name.partition(".")[0] in ("deltafit", "peft") for name in sys.modules)
print(json.dumps({"logits": logits.tolist(), "labels": model.config.id2label}))
"""


@pytest.mark.slow
def test_transformers_alone_predicts_the_same(tmp_path: Path) -> None:
    classifier = saved(tmp_path, LoRA("all-linear", rank=2))
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    said = report.certificate.canaries
    assert said.flipped == 0 and 0 < said.largest_change < 1e-5 and not report.head_apart
    output = subprocess.run(
        [sys.executable, "-c", PREDICT, str(tmp_path / "merged"), json.dumps(TEXTS)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(output)
    assert found["labels"] == {str(index): name for index, name in enumerate(LABELS)}
    np.testing.assert_allclose(found["logits"], logits(classifier).numpy(), rtol=1e-4, atol=1e-5)


def test_a_replacement_merges_to_the_very_bits(tmp_path: Path) -> None:
    classifier = saved(tmp_path, Full())
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    assert report.certificate.canaries.largest_change == report.certificate.energy_lost == 0
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    for name, parameter in classifier.model.named_parameters():
        assert torch.equal(stored[name], parameter), name


def test_long_texts_are_cut_where_they_were_in_training(tmp_path: Path) -> None:
    saved(tmp_path)
    merge(tmp_path / "adapter", tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = " ".join(WORDS[: MAX_LENGTH + 5])
    expected = next(predict(tmp_path / "adapter", [text])).probabilities
    batch = tokenizer(text, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, MAX_LENGTH)
    with torch.no_grad():
        found = model(batch["input_ids"]).logits.softmax(1)[0]
    assert found.tolist() == pytest.approx(list(expected.values()), abs=1e-5)


@pytest.mark.parametrize("head", ["mean", "cls", "last"])
def test_a_pooled_head_is_read_off_by_the_formula_beside_it(tmp_path: Path, head: str) -> None:
    classifier = saved(tmp_path, LoRA(rank=2), head)
    assert merge(tmp_path / "adapter", tmp_path / "merged").head_apart
    encoder = AutoModel.from_pretrained(tmp_path / "merged").eval()
    weights = load_file(tmp_path / "merged" / "head.safetensors")
    description = json.loads((tmp_path / "merged" / "head.json").read_text())
    assert description["pooling"] == head and description["label_names"] == list(LABELS)
    expected = logits(classifier)
    for index, text in enumerate(TEXTS):
        ids = classifier.tokenizer(text)["input_ids"]
        with torch.no_grad():
            state = encoder(**collate([ids], PAD, positions=False)).last_hidden_state[0]
        pooled = {"mean": state.mean(0), "cls": state[0], "last": state[-1]}[head]
        found = weights["classifier.weight"] @ pooled + weights["classifier.bias"]
        torch.testing.assert_close(found, expected[index], rtol=1e-4, atol=1e-5)


def test_the_merged_checkpoint_is_a_base_of_its_own(tmp_path: Path) -> None:
    saved(tmp_path)
    merge(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(DeltafitError, match="another base"):
        load_saved(tmp_path / "adapter", model=str(tmp_path / "merged"))


@pytest.mark.parametrize("method", [LoRA("all-linear", rank=2), DoRA(rank=2), IA3()], ids=str)
def test_the_certificate_is_true_and_stored(tmp_path: Path, method: Method) -> None:
    classifier = saved(tmp_path, method)
    texts = write_table(tmp_path / "texts.csv", 12)
    report = merge(tmp_path / "adapter", tmp_path / "merged", data=texts)
    stored = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert stored["by"] == "merge" and stored["of"] == [str((tmp_path / "adapter").resolve())]
    assert stored["certificate"] == report.certificate.to_dict() and stored["tolerance"] == 0.1
    found = report.certificate
    assert found.canaries.texts == 16 and found.probe is not None and found.probe.texts == 12
    assert 0 < found.probe.largest_change < 1e-5 and found.probe.flipped == 0
    # What rounding takes, from the files alone: Δ is what the adapter says, in float64.
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    energy = lost = 0.0
    for target in model_adapters(classifier.model).adapters["default"].targets:
        with torch.no_grad():
            deltas = layer_state(classifier.model.get_submodule(target)).deltas("default")
        for leaf, delta in deltas.items():
            name = f"{target}.{leaf}"
            start = before[name if name in before else name.removeprefix("bert.")].double()
            energy += float(delta.double().square().sum())
            lost += float((after[name].double() - start - delta.double()).square().sum())
    assert 0 < found.energy_lost < 1e-9
    assert found.energy_lost == pytest.approx(lost / energy, rel=1e-6)


def test_above_the_tolerance_nothing_is_written(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(DeltafitError, match=r"a logit would change by .* Nothing was written"):
        merge(tmp_path / "adapter", tmp_path / "merged", tolerance=0)
    with pytest.raises(UsageError, match="tolerance must be"):
        merge(tmp_path / "adapter", tmp_path / "merged", tolerance=-1)
    assert not (tmp_path / "merged").exists()


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_merging_that_changes_predictions_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)

    def forget(model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data += 0.1

    monkeypatch.setattr("deltafit.prediction.merging.merge_and_unload", forget)
    with pytest.raises(DeltafitError, match="would change its predictions"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
