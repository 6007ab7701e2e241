"""A saved classifier proves itself: the same logits again, and a sentence for any change."""

import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from deltafit.data import tokenise
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.prediction.canaries import SENTENCES, canary_logits
from deltafit.prediction.fingerprint import fingerprint
from deltafit.prediction.folder import load_saved, save_classifier
from deltafit.prediction.location import adapter_folder, is_run_or_adapter
from deltafit.prediction.using import verify
from deltafit.tasks.classification import Classifier, collate, logits_of
from tests.tiny_models import tiny_model
from tests.training.tiny_runs import LABELS, adapted, save_model, tiny_texts, tiny_tokenizer

METHODS = (LoRA(rank=2), Full(), Head(), LastBlocks(1))
ADAPTER, CANARIES, FACTS = "adapter_model.safetensors", "canaries.safetensors", "deltafit.json"
MAX_LENGTH = 16


def trained(model: str, method: Method | None = None, head: str = "architecture") -> Classifier:
    """An adapted classifier whose every trained tensor was moved."""
    classifier = adapted(model, method, head=head)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return classifier


def saved(folder: Path, method: Method | None = None, head: str = "architecture") -> Classifier:
    """Save one beside its base: ``base`` and ``adapter``."""
    model = save_model(folder / "base")
    classifier = trained(model, method, head)
    plain = adapted(model, Head(), head=head)
    save_classifier(
        classifier,
        folder / "adapter",
        base_fingerprint=fingerprint(plain.model, plain.head_parameters),
        max_length=MAX_LENGTH,
        facts={"metrics": {"test": {"accuracy": 0.5}}},
    )
    return classifier


def logits(classifier: Classifier) -> torch.Tensor:
    rows = tokenise(classifier.tokenizer, [text for text, _ in tiny_texts(7)], 16).input_ids
    batch = collate(rows, classifier.pad_token_id, positions=classifier.positions)
    with torch.no_grad():
        return logits_of(classifier.model, batch)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("head", ["architecture", "mean"])
def test_a_fresh_load_gives_the_very_logits(tmp_path: Path, method: Method, head: str) -> None:
    classifier = saved(tmp_path, method, head)
    found = load_saved(tmp_path / "adapter")
    assert torch.equal(logits(found.classifier), logits(classifier))
    assert found.canary_difference == 0 and not found.notes
    assert found.classifier.label_names == LABELS and found.max_length == MAX_LENGTH
    assert found.facts["metrics"]["test"]["accuracy"] == 0.5
    assert found.facts["canaries"] == list(SENTENCES) and len(set(SENTENCES)) == 16


def test_label_names_survive_in_any_alphabet(tmp_path: Path) -> None:
    classifier = trained(save_model(tmp_path / "base"))
    classifier.label_names = ("négatif", "中性", 'so "so", \n')
    plain = fingerprint(adapted(save_model(tmp_path / "base"), Head()).model, ())
    plain = {n: e for n, e in plain.items() if n not in classifier.head_parameters}
    save_classifier(
        classifier, tmp_path / "adapter", base_fingerprint=plain, max_length=9, facts={}
    )
    assert load_saved(tmp_path / "adapter").classifier.label_names == classifier.label_names


def test_a_base_that_lacks_a_pooler_is_the_same_base_again(tmp_path: Path) -> None:
    BertForMaskedLM(tiny_model("bert").config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    plain = adapted(str(tmp_path / "base"), Head(), head="mean")
    save_classifier(
        plain,
        tmp_path / "adapter",
        base_fingerprint=fingerprint(plain.model, plain.head_parameters),
        max_length=9,
        facts={},
    )
    torch.manual_seed(5)
    load_saved(tmp_path / "adapter")


def test_the_folder_may_move_and_so_may_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    saved(Path())  # a base named by a relative path
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "here" / "adapter", tmp_path / "there")
    verify(tmp_path / "there")
    # A run's folder stands for the adapter in it.
    shutil.copytree(tmp_path / "there", tmp_path / "run" / "adapter")
    verify(tmp_path / "run")


def test_a_base_that_has_moved_is_asked_for(tmp_path: Path) -> None:
    classifier = saved(tmp_path)
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(DeltafitError, match="name its place with --model"):
        load_saved(tmp_path / "adapter")
    found = load_saved(tmp_path / "adapter", model=str(tmp_path / "moved"))
    assert torch.equal(logits(found.classifier), logits(classifier))
    with pytest.raises(DeltafitError, match="no model at"):
        load_saved(tmp_path / "adapter", model=str(tmp_path / "nowhere"))


def test_folders_without_an_adapter_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeltafitError, match="no folder"):
        load_saved(tmp_path / "nowhere")
    with pytest.raises(DeltafitError, match="holds no adapter"):
        load_saved(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DeltafitError, match="has not finished"):
        load_saved(tmp_path)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    with pytest.raises(DeltafitError, match="read_adapter"):
        load_saved(tmp_path / "peft")


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "roberta", "llama"])
def test_peft_loads_the_folder_to_the_same_logits(tmp_path: Path, architecture: str) -> None:
    model = save_model(tmp_path / "base", architecture)
    classifier = trained(model)
    save_classifier(classifier, tmp_path / "adapter", base_fingerprint={}, max_length=16, facts={})
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(LABELS))
    base.config.pad_token_id = classifier.pad_token_id
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    rows = tokenise(classifier.tokenizer, [text for text, _ in tiny_texts(7)], 16).input_ids
    batch = collate(rows, classifier.pad_token_id, positions=classifier.positions)
    with torch.no_grad():
        found = theirs(**batch).logits
    torch.testing.assert_close(found, logits(classifier), rtol=1e-5, atol=1e-5)


def test_saving_and_loading_never_call_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    saved(tmp_path)
    verify(tmp_path / "adapter")


def test_nothing_half_written_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deltafit.prediction.folder.write_json_atomically", full_disk)
    with pytest.raises(DeltafitError, match="No space left"):
        saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_canaries_are_each_sentences_own_logits(tmp_path: Path) -> None:
    classifier = trained(save_model(tmp_path))
    found = canary_logits(classifier, SENTENCES, MAX_LENGTH)
    assert found.shape == (16, 3) and found.dtype == np.float32
    ids = classifier.tokenizer(SENTENCES[4], truncation=True, max_length=MAX_LENGTH)["input_ids"]
    with torch.no_grad():
        alone = logits_of(classifier.model, collate([ids], 1, positions=False))[0]
    np.testing.assert_allclose(found[4], alone.numpy(), rtol=1e-5, atol=1e-5)


def test_a_comparisons_folder_names_a_run_inside_it(tmp_path):
    for name in ("head-seed0", "lora-seed0"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DeltafitError, match=r"comparison of 2 runs.*head-seed0"):
        adapter_folder(tmp_path)
    assert is_run_or_adapter(tmp_path) and not is_run_or_adapter(tmp_path / "runs")


def test_a_file_in_the_place_of_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\nw1\n")
    with pytest.raises(UsageError, match=r"texts.csv is a file.*--data"):
        adapter_folder(tmp_path / "texts.csv")


def test_a_tokenizer_that_drops_whole_sentences_is_proven_by_the_others(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    # Neither an unknown token nor special ones: what it does not know leaves nothing behind.
    letters = Tokenizer(models.BPE({"<pad>": 1, "g": 4, "z": 5}, []))
    PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>").save_pretrained(
        tmp_path / "base"
    )
    classifier = trained(str(tmp_path / "base"))
    plain = adapted(str(tmp_path / "base"), Head())
    save_classifier(
        classifier,
        tmp_path / "adapter",
        base_fingerprint=fingerprint(plain.model, plain.head_parameters),
        max_length=MAX_LENGTH,
        facts={},
    )
    canaries = load_saved(tmp_path / "adapter").facts["canaries"]
    assert canaries == [text for text in SENTENCES if set(text) & set("gz")]
    assert 0 < len(canaries) < len(SENTENCES)
