"""What the doctor finds of targets, head, padding and length, on tiny models."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers, processors
from transformers import AutoModel, AutoTokenizer

from deltafit.experiments.doctor import examine
from deltafit.experiments.findings import Case, Finding
from deltafit.experiments.model_checks import (
    MODEL_CHECKS,
    Loaded,
    head_of_checkpoint,
    load_for,
    sampled,
    targets,
)
from deltafit.experiments.reading_checks import (
    READING_CHECKS,
    left_padding,
    pad_token,
    padding,
    truncation,
)
from deltafit.experiments.recipe import experiment_of
from deltafit.training.settings import HeadConfig
from tests.experiments.cases import case_of, only
from tests.tiny_models import tiny_model
from tests.training.tiny_runs import LABELS, save_model, tiny_tokenizer


def looked_at(folder: Path, architecture: str = "bert", **planted: Any) -> tuple[Case, Loaded]:
    model = planted.pop("model", None) or save_model(folder / "model", architecture)
    case = case_of(folder, model=model, **planted)
    return case, sampled(case, load_for(case))


def all_findings(case: Case) -> list[Finding]:
    experiment = experiment_of(case.recipe)
    return examine(case.recipe, experiment, case.splits, thorough=False)


@pytest.mark.parametrize("head", ["architecture", "mean"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_a_healthy_encoder_has_no_finding(tmp_path: Path, architecture: str, head: Any) -> None:
    planted = {"runs": ["lora", "full", "prompt"], "head": HeadConfig(head)}
    case, model = looked_at(tmp_path, architecture, **planted)
    for check in (*MODEL_CHECKS, *READING_CHECKS):
        assert list(check(case, model)) == []


@pytest.mark.parametrize("head", ["architecture", "last", "mean"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_decoders_give_the_same_padded_on_either_side(
    tmp_path: Path, architecture: str, head: Any
) -> None:
    case, model = looked_at(tmp_path, architecture, head=HeadConfig(head))
    assert list(padding(case, model)) == []
    assert list(pad_token(case, model)) == [], "what fills up is masked"


def test_targets_that_match_nothing_are_an_error_with_the_nearest(tmp_path: Path) -> None:
    case, model = looked_at(tmp_path, runs=["lora", "lora:target_modules=qery"])
    error = only(list(targets(case, model)))
    assert error.severity == "error" and error.rows == ("lora:target_modules=qery",)
    assert "'qery' matches no module. There are query" in error.sentence
    assert error.remedy.startswith("--set runs.1.method=lora:target_modules=all-linear or ")
    assert f"shown by: deltafit inspect {case.recipe.model}" in error.remedy


def test_a_method_that_leaves_no_place_for_texts_is_an_error(tmp_path: Path) -> None:
    case = looked_at(tmp_path, runs=["prompt:count=64", "lora"])[0]
    error = only([found for found in all_findings(case) if found.severity == "error"])
    assert "takes all positions" in error.sentence
    assert error.remedy.startswith("--set runs.0.method=prompt or ")


def test_targets_in_some_blocks_are_told_unless_they_were_asked_for(tmp_path: Path) -> None:
    some = "lora:target_modules=0.attention.self.query+1.attention.self.query+value"
    case, model = looked_at(tmp_path, runs=[some, "lora:layers=-1", "bitfit", "prompt"])
    note = only(list(targets(case, model)))
    assert note.severity == "note" and len(note.rows) == 1
    assert note.sentence == "Layers called query are adapted in 2 of 3 blocks: 0, 1."


def test_a_head_that_is_not_trained_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, model = looked_at(tmp_path)
    monkeypatch.setattr(
        "deltafit.experiments.model_checks.check_fits", lambda *words, **named: ((), ())
    )
    assert "leave the head as it starts" in only(list(targets(case, model))).sentence


@pytest.mark.parametrize(
    ("names", "severity", "sentence"),
    [
        (LABELS, None, ""),
        (LABELS[::-1], "warning", "are yours in another order (mixed, good, bad)"),
        (("a", "b", "c"), "note", "are yours by other names (a, b, c)"),
        (("a", "b"), "note", "own head is of 2 classes (a, b) and yours of 3"),
    ],
)
def test_a_head_that_the_checkpoint_brings(
    tmp_path: Path, names: tuple[str, ...], severity: str | None, sentence: str
) -> None:
    saved = tiny_model("bert", num_labels=len(names))
    saved.config.id2label = dict(enumerate(names))
    saved.config.label2id = {name: index for index, name in enumerate(names)}
    saved.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    case, model = looked_at(tmp_path, model=str(tmp_path / "model"))
    found = list(head_of_checkpoint(case, model))
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all(sentence in each.sentence for each in found)
    pooled = replace(case, recipe=replace(case.recipe, head=HeadConfig("mean")))
    assert list(head_of_checkpoint(pooled, sampled(pooled, load_for(pooled)))) == []


def test_a_model_that_sees_padding_is_told(tmp_path: Path) -> None:
    case, model = looked_at(tmp_path, "convbert")
    found = only(list(padding(case, model)))
    assert found.severity == "warning" and "filled up on the right" in found.sentence
    assert found.remedy.startswith("--set model=minilm ")


def test_places_counted_with_padding_are_told(tmp_path: Path) -> None:
    case, model = looked_at(tmp_path, "gpt2")
    wrong = replace(model, classifier=replace(model.classifier, positions=False))
    found = only(list(padding(case, wrong)))
    assert "filled up on the left: deltafit never pads there" in found.sentence
    assert found.severity == "warning" and 'tokenizer.padding_side = "right"' in found.remedy


# Two heads of an architecture read the first place; only a BERT counts places from the edge.
@pytest.mark.parametrize(
    ("architecture", "head", "same"),
    [("bert", "mean", False), ("bert", "architecture", False), ("roberta", "architecture", False),
     ("roberta", "mean", True), ("modernbert", "mean", True), ("modernbert", "last", True)],
)  # fmt: skip
def test_encoders_are_tried_on_the_left_too(
    tmp_path: Path, architecture: str, head: Any, same: bool
) -> None:
    case, model = looked_at(tmp_path, architecture, head=HeadConfig(head))
    found = list(left_padding(case, model))
    assert [each.severity for each in found] == ([] if same else ["note"])
    assert all("it counts places, or its head reads" in each.sentence for each in found)
    # A tokenizer that does pad there walks into it.
    model.classifier.tokenizer.padding_side = "left"
    assert [each.severity for each in padding(case, model)] == ([] if same else ["warning"])
    assert list(left_padding(case, model)) == []


def test_a_pad_token_that_the_model_does_not_know_is_an_error(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.eos_token = None
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(model)
    case, loaded = looked_at(tmp_path, model=model)
    error = only(list(padding(case, loaded)))
    assert error.severity == "error" and "The pad token is 64" in error.sentence
    command, dashed, code = shlex.split(error.remedy)
    assert (command, dashed) == ("python", "-c")
    exec(code)
    assert list(padding(*looked_at(tmp_path, model=model))) == []


def test_texts_that_end_with_what_fills_up(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(model)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    tokenizer.save_pretrained(model)
    case, loaded = looked_at(tmp_path, model=model)
    found = only(list(pad_token(case, loaded)))
    assert found.severity == "warning" and "270 of 270 texts end with" in found.sentence
    assert found.remedy == "--set head.head=last"
    case, loaded = looked_at(tmp_path, model=model, head=HeadConfig("last"))
    assert list(pad_token(case, loaded)) == []


def test_weights_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    damaged = AutoModel.from_pretrained(model)
    with torch.no_grad():
        damaged.embeddings.word_embeddings.weight[:, 0] = torch.nan
    damaged.save_pretrained(model)
    error = only(list(padding(*looked_at(tmp_path, model=model))))
    assert error.severity == "error" and "not a number" in error.sentence


# Texts have 4 to 9 words, and the tokenizer adds nothing: half of them have 6.
def test_texts_that_are_cut(tmp_path: Path) -> None:
    case, model = looked_at(tmp_path, max_length=6)
    found = only(list(truncation(case, model)))
    exact = sum(len(row) > 6 for row in model.rows) / len(model.rows)
    assert found.severity == "warning"
    assert found.sentence.startswith(f"{exact:.1%} of texts are cut to 6 tokens.")
    assert "the longest has 9" in found.sentence
    assert found.remedy == "--set settings.max_length=9"
    case, model = looked_at(tmp_path, model=case.recipe.model, max_length=9)
    assert list(truncation(case, model)) == []


def test_lengths_that_the_model_does_not_have(tmp_path: Path) -> None:
    case, model = looked_at(tmp_path, max_length=256, runs=["lora", "prompt:count=60"])
    few, cut, lowered = sorted(truncation(case, model), key=lambda found: found.sentence[-9:])
    sentences = " ".join(found.sentence for found in (few, cut, lowered))
    assert "takes texts of at most 64 tokens: it is lowered" in sentences
    assert "takes texts of at most 4 tokens: it is lowered" in sentences
    assert "of texts are cut to 4 tokens" in sentences
    assert any("takes no more tokens" in found.remedy for found in (few, cut, lowered))


@pytest.mark.parametrize(
    ("planted", "subject", "sentence"),
    [
        ({"model": "nowhere/to-be-found"}, "model", "nowhere/to-be-found"),
        ({"architecture": "gpt2", "head": HeadConfig("cls")}, "head", "reads from left to right"),
        ({"train": [("é" * n, LABELS[n % 3]) for n in range(1, 90)]}, "texts", "has no tokens"),
    ],
)
def test_what_cannot_be_loaded_is_an_error(
    tmp_path: Path, planted: dict[str, Any], subject: str, sentence: str
) -> None:
    architecture = planted.pop("architecture", "bert")
    model = planted.pop("model", None) or save_model(tmp_path / "model", architecture)
    case = case_of(tmp_path, model=model, **planted)
    if subject == "texts":
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer._tokenizer.normalizer = normalizers.Replace("é", "")
        tokenizer.save_pretrained(model)
    error = only([found for found in all_findings(case) if found.severity == "error"])
    assert error.subject == subject and sentence in error.sentence
