"""A classifier on a quantised base: saved, loaded onto the same, proven, and merged in float32."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from deltafit.adapters import (
    QUANTISED,
    adapt,
    check_fits,
    load_adapter,
    quantise,
    read_adapter,
)
from deltafit.data import resolve_model
from deltafit.errors import DeltafitError
from deltafit.methods import Head, LoRA, Method
from deltafit.prediction.canaries import canary_logits, largest_difference
from deltafit.prediction.fingerprint import fingerprint
from deltafit.prediction.folder import load_saved, load_unquantised, save_classifier
from deltafit.prediction.inspecting import changes_of_runs, inspect
from deltafit.prediction.merged import compute_logits_merged
from deltafit.prediction.merging import merge
from deltafit.prediction.using import predict, verify
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier
from tests.prediction.test_folder import FACTS, MAX_LENGTH, logits
from tests.prediction.test_tampering import change_json
from tests.tiny_models import tiny_model
from tests.training.tiny_runs import LABELS, save_model, tiny_examples, tiny_texts

pytestmark = pytest.mark.slow

MAPS = Path("/proc/self/maps")

kinds = pytest.mark.parametrize("kind", QUANTISED)


def saved(
    folder: Path, kind: str, method: Method = LoRA(rank=2), head: str = "architecture"
) -> Classifier:
    """Save one with moved tensors beside its base: ``base`` and ``adapter``."""
    source = resolve_model(save_model(folder / "base"))
    settings = HeadSettings(head)  # type: ignore[arg-type]  # tests give strings
    classifier = load_classifier(source, LABELS, settings, seed=0)
    base = fingerprint(classifier.model, classifier.head_parameters)
    targets, _ = check_fits(classifier.model, method, head=classifier.head_parameters)
    errors = quantise(classifier.model, kind, errors_of=targets)  # type: ignore[arg-type]  # of QUANTISED
    adapt(classifier.model, method, head=classifier.head_parameters, statistics=errors)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    save_classifier(
        classifier,
        folder / "adapter",
        base_fingerprint=base,
        max_length=MAX_LENGTH,
        facts={},
    )
    return classifier


@kinds
@pytest.mark.parametrize("method", [LoRA("all-linear", rank=2), Head()], ids=str)
@pytest.mark.parametrize("head", ["architecture", "mean"])
def test_a_fresh_load_gives_the_very_logits(
    tmp_path: Path, kind: str, method: Method, head: str
) -> None:
    classifier = saved(tmp_path, kind, method, head)
    found = verify(tmp_path / "adapter")
    assert found.canary_difference == 0
    assert torch.equal(logits(found.classifier), logits(classifier))
    assert found.facts["base"]["weights"] == kind and found.facts["versions"]["bitsandbytes"]
    texts = [text for text, _ in tiny_texts(7)]
    expected = logits(classifier).softmax(1).argmax(1)
    labels = [prediction.label for prediction in predict(tmp_path / "adapter", texts)]
    assert labels == [LABELS[index] for index in expected]


@kinds
def test_prediction_leaves_quantised_weights_unmerged(tmp_path: Path, kind: str) -> None:
    """Merging would take the memory that quantising saved."""
    classifier = saved(tmp_path, kind)
    merging: list[torch.dtype] = []
    layer = classifier.model.get_submodule("bert.encoder.layer.0.attention.self.query")
    layer.register_forward_pre_hook(lambda module, args: merging.append(module.weight.dtype))
    rows = tiny_examples(600).rows
    assert sum(map(len, rows)) > 2048, "enough to merge for"
    compute_logits_merged(classifier, rows)
    assert set(merging) == {torch.int8}


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not tell what is mapped")
@kinds
def test_the_checkpoints_file_is_let_go(tmp_path: Path, kind: str) -> None:
    """A tensor that still lay in it would keep all of it in memory."""
    saved(tmp_path, kind)
    gc.collect()
    held = load_saved(tmp_path / "adapter").classifier
    gc.collect()
    assert str(tmp_path / "base") not in MAPS.read_text() and held.model is not None


def test_other_weights_than_it_was_trained_on_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "nf4")
    facts = tmp_path / "adapter" / FACTS
    content = facts.read_text()
    for value in ("float32", "int8", None):
        change_json(facts, "base.weights", value)
        with pytest.raises(DeltafitError, match=r"'base\.weights' changed since"):
            load_saved(tmp_path / "adapter")
        facts.write_text(content)
    change_json(facts, "base.weights", "int3")
    with pytest.raises(DeltafitError, match=r"'base\.weights' must be one of float32, int8, nf4"):
        load_saved(tmp_path / "adapter")


def test_the_fingerprint_is_of_the_base_as_it_was_loaded(tmp_path: Path) -> None:
    saved(tmp_path, "nf4")
    plain = tiny_model("bert", task="base", seed=1)
    plain.save_pretrained(tmp_path / "base")
    with pytest.raises(DeltafitError, match="another base"):
        load_saved(tmp_path / "adapter")


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, "int8")
    monkeypatch.setattr("deltafit.adapters.quantising.find_spec", lambda name: None)
    with pytest.raises(DeltafitError, match=r"pip install 'deltafit\[quantised\]'"):
        load_saved(tmp_path / "adapter")


@kinds
def test_inspecting_measures_against_the_dequantised_weights(tmp_path: Path, kind: str) -> None:
    classifier = saved(tmp_path, kind)
    dense = classifier.model
    changes = inspect(tmp_path / "adapter").changes  # type: ignore[union-attr]  # an adapter's
    assert changes_of_runs({"run": tmp_path / "adapter"}) == {"run": changes}
    change = changes[0]
    layer = dense.get_submodule(change.name)
    assert change.shape == (32, 32)
    assert change.weight_norm == pytest.approx(float(layer.dense().norm()), rel=1e-6)


@kinds
def test_merging_is_into_the_float32_base_and_says_what_changed(tmp_path: Path, kind: str) -> None:
    classifier = saved(tmp_path, kind)
    sentences = verify(tmp_path / "adapter").facts["canaries"]
    proven = canary_logits(classifier, sentences, MAX_LENGTH)
    with pytest.raises(DeltafitError, match=f"was trained on base weights in {kind}, and is merg"):
        merge(tmp_path / "adapter", tmp_path / "merged", tolerance=1e-5)
    report = merge(tmp_path / "adapter", tmp_path / "merged", tolerance=9)
    assert report.quantised == kind
    # The oracle: the adapter on the checkpoint as it lies on disk.
    plain = load_classifier(resolve_model(str(tmp_path / "base")), LABELS, HeadSettings(), seed=0)
    load_adapter(plain.model, read_adapter(tmp_path / "adapter"))
    expected = canary_logits(plain, sentences, MAX_LENGTH)
    plain.model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    found = canary_logits(plain, sentences, MAX_LENGTH)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    said = report.certificate.canaries
    assert said.largest_change == pytest.approx(largest_difference(found, proven), rel=1e-3)
    assert said.largest_change > 1e-4, "another base gives other logits"
    assert said.flipped == int((found.argmax(1) != proven.argmax(1)).sum())
    kept = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert kept["base_weights_in_training"] == kind
    assert kept["certificate"] == report.certificate.to_dict()
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())


@kinds
def test_what_makes_up_for_the_rounding_is_merged_into_the_rounded_weights(
    tmp_path: Path, kind: str
) -> None:
    classifier = saved(tmp_path, kind, LoRA(rank=2, initialisation="loftq"))
    report = merge(tmp_path / "adapter", tmp_path / "merged", tolerance=1e-4)
    assert report.quantised is None
    kept = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert kept["base_weights_in_training"] == kind
    plain = load_classifier(resolve_model(str(tmp_path / "base")), LABELS, HeadSettings(), seed=0)
    plain.model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(logits(plain), logits(classifier), rtol=1e-4, atol=1e-4)
    with pytest.raises(DeltafitError, match=rf"in {kind} takes from them \(LoftQ\)"):
        load_unquantised(tmp_path / "adapter")


def test_folders_from_before_load_as_they_did(tmp_path: Path) -> None:
    """They neither say how the base's weights are stored, nor seal it."""
    from deltafit.prediction.canaries import write_canaries

    saved(tmp_path, "int8")
    adapter, plain = tmp_path / "adapter", tmp_path / "base"
    classifier = load_classifier(resolve_model(str(plain)), LABELS, HeadSettings(), seed=0)
    load_adapter(classifier.model, read_adapter(adapter))
    change_json(adapter / FACTS, "base.weights", None)
    facts = json.loads((adapter / FACTS).read_text())
    write_canaries(adapter, canary_logits(classifier, facts["canaries"], MAX_LENGTH), facts)
    assert torch.equal(logits(load_saved(adapter).classifier), logits(classifier))
