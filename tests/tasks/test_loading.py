"""Loading: what the head is, where its values come from, and what is never loaded."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
)

from deltafit.data import resolve_model
from deltafit.errors import DeltafitError
from deltafit.tasks.classification import (
    Classifier,
    HeadSettings,
    classifier_structure,
    load_classifier,
)
from deltafit.tasks.inference import compute_logits
from deltafit.tasks.loading import load_structure, load_tokenizer
from tests.tiny_models import ENCODERS_ALONE, tiny_model
from tests.training.tiny_runs import LABELS, SPECIAL, save_model, tiny_tokenizer

HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {f"classifier.{part}.{leaf}" for part in ("dense", "out_proj")
                for leaf in ("weight", "bias")},
    "distilbert": {f"{part}.{leaf}" for part in ("pre_classifier", "classifier")
                   for leaf in ("weight", "bias")},
    "deberta-v2": {f"{part}.{leaf}" for part in ("pooler.dense", "classifier")
                   for leaf in ("weight", "bias")},
    "electra": {f"classifier.{part}.{leaf}" for part in ("dense", "out_proj")
                for leaf in ("weight", "bias")},
    "gpt2": {"score.weight"},
    "llama": {"score.weight"},
    "opt": {"score.weight"},
}  # fmt: skip


def load(
    folder: str | Path, names: tuple[str, ...] = LABELS, seed: int = 0, head: str = "architecture"
) -> Classifier:
    settings = HeadSettings(head)  # type: ignore[arg-type]  # tests give strings
    return load_classifier(resolve_model(folder), names, settings, seed=seed)


def head_values(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {n: classifier.model.get_parameter(n).detach() for n in classifier.head_parameters}


@pytest.mark.parametrize("architecture", HEADS)
def test_head_is_what_the_checkpoint_lacks(tmp_path: Path, architecture: str) -> None:
    classifier = load(save_model(tmp_path, architecture))
    assert set(classifier.head_parameters) == HEADS[architecture]
    base = tiny_model(architecture, task="base").state_dict()
    encoder = classifier.model.get_submodule(str(classifier.model.base_model_prefix))
    for name, tensor in encoder.state_dict().items():
        if name in base:
            assert torch.equal(tensor, base[name]), name
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}


def test_a_pooler_that_the_checkpoint_lacks_belongs_to_the_head(tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(tiny_model("bert").config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    head = set(load(str(tmp_path)).head_parameters)
    assert head == HEADS["bert"] | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "gpt2"])
def test_new_head_depends_on_the_seed_alone(tmp_path: Path, architecture: str) -> None:
    folder = save_model(tmp_path, architecture)
    torch.manual_seed(1)
    first = head_values(load(folder))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other = head_values(load(folder)), head_values(load(folder, seed=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name in first if name.endswith("weight")]
    assert all(not torch.equal(first[name], other[name]) for name in weights)
    torch.set_rng_state(state)


@pytest.mark.parametrize("whole", [True, False], ids=["with its decoder", "without"])
@pytest.mark.parametrize("architecture", ENCODERS_ALONE)
def test_a_pooled_head_is_on_the_encoder_alone(
    tmp_path: Path, architecture: str, whole: bool
) -> None:
    encoder = tiny_model(architecture, task="base")
    folder = save_model(tmp_path, architecture)
    if whole:
        config = copy.deepcopy(encoder.config)
        config.is_encoder_decoder = True
        model = AutoModelForSeq2SeqLM.from_config(config)
        model.load_state_dict(encoder.state_dict(), strict=False)
        model.save_pretrained(folder)
    classifier = load(folder, head="mean")
    found = classifier.model.get_submodule("encoder").state_dict()
    assert found.keys() == encoder.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in encoder.state_dict().items())
    assert np.isfinite(compute_logits(classifier, [[4, 5, 6], [7]])).all()
    structure, head = classifier_structure(resolve_model(folder), HeadSettings("mean"))
    assert list(structure.state_dict()) == list(classifier.model.state_dict())
    assert head == classifier.head_parameters


@pytest.mark.parametrize("head", ["cls", "mean"])
def test_the_same_base_comes_out_twice_even_where_the_checkpoint_lacks_a_pooler(
    tmp_path: Path, head: str
) -> None:
    BertForMaskedLM(tiny_model("bert").config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = HeadSettings(head)  # type: ignore[arg-type]  # parametrised
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        classifier = load_classifier(resolve_model(tmp_path), LABELS, settings, seed=global_seed)
        states.append(classifier.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_head_that_the_checkpoint_brings_is_kept(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "bert", task="classification")
    classifier = load(folder)
    expected = tiny_model("bert").state_dict()
    assert set(classifier.head_parameters) == HEADS["bert"]
    for name, tensor in head_values(classifier).items():
        assert torch.equal(tensor, expected[name])


def test_a_head_for_other_labels_is_made_anew(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "bert", task="classification")
    classifier = load(folder, ("no", "yes"))
    assert set(classifier.head_parameters) == HEADS["bert"]
    values = head_values(classifier)
    assert values["classifier.weight"].shape == (2, 32)
    again = head_values(load(folder, ("no", "yes")))
    assert all(torch.equal(values[name], again[name]) for name in values)


def test_label_names_reach_the_configuration(tmp_path: Path) -> None:
    config = load(save_model(tmp_path)).model.config
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {name: index for index, name in enumerate(LABELS)}
    assert config.num_labels == 3


@pytest.mark.parametrize("head", ["architecture", "mean"])
def test_pickled_weights_are_refused(tmp_path: Path, head: str) -> None:
    folder = Path(save_model(tmp_path))
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("bert", task="base").state_dict(), folder / "pytorch_model.bin")
    settings = HeadSettings(head)  # type: ignore[arg-type]  # parametrised
    with pytest.raises(DeltafitError, match="safetensors"):
        load_classifier(resolve_model(folder), LABELS, settings, seed=0)


EVIL = "evil.Evil"
AUTO_MAPS: dict[str, dict[str, dict[str, object]]] = {
    "configuration": {"config.json": {"model_type": "evil", "auto_map": {"AutoConfig": EVIL}}},
    "tokenizer": {
        "config.json": {"model_type": "evil"},
        "tokenizer_config.json": {
            "tokenizer_class": "Evil",
            "auto_map": {"AutoTokenizer": [EVIL, EVIL]},
        },
    },
    "model": {
        "config.json": {
            "model_type": "vit",  # which has no text classifier but the one it brings
            "auto_map": {"AutoModelForSequenceClassification": EVIL},
        }
    },
}


@pytest.mark.parametrize("part", AUTO_MAPS)
def test_code_in_the_checkpoint_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # `yes | deltafit ...`
    folder, ran = Path(save_model(tmp_path / "model")), tmp_path / "ran"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    for name, settings in AUTO_MAPS[part].items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | settings))
    loaders = [load, load_structure] if part != "tokenizer" else [load]
    for loader in loaders:
        source = folder if loader is load else resolve_model(folder)
        with pytest.raises(DeltafitError, match="brings code of its own, which deltafit never"):
            loader(source)
    assert not ran.exists()


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DeltafitError, match="Could not load"):
        load(str(folder))


def test_pad_token_is_the_end_of_text_where_there_is_none(tmp_path: Path) -> None:
    tokenizer, decoder = load_tokenizer(resolve_model(save_model(tmp_path / "gpt2", "gpt2")))
    assert decoder and tokenizer.pad_token == SPECIAL[2]
    tokenizer, decoder = load_tokenizer(resolve_model(save_model(tmp_path / "bert", "bert")))
    assert not decoder and tokenizer.pad_token == "<pad>"


def test_no_pad_and_no_end_of_text_is_one_sentence(tmp_path: Path) -> None:
    save_model(tmp_path, "gpt2")
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DeltafitError, match="neither a pad token nor"):
        load_tokenizer(resolve_model(tmp_path))


def test_a_model_without_text_classifier_is_one_sentence(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    config = BertConfig().to_dict() | {"model_type": "vit"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DeltafitError, match="no text classifier"):
        load(tmp_path)
    with pytest.raises(DeltafitError, match="no text classifier"):
        load_structure(resolve_model(tmp_path))


@pytest.mark.parametrize("head", ["architecture", "last"])
def test_a_pad_token_without_embedding_gives_way_to_the_end_of_text(
    tmp_path: Path, head: str
) -> None:
    model = save_model(tmp_path, "gpt2")
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    classifier = load(model, head=head)
    assert classifier.tokenizer.pad_token == SPECIAL[2]
    assert np.isfinite(compute_logits(classifier, [[5, 6, 7], [8]])).all()
