"""A checkpoint's weights fit its configuration or are refused; what may lack or be left over."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from deltafit.errors import DeltafitError
from tests.tasks.test_loading import load
from tests.tiny_models import ARCHITECTURES, DECODERS, SHARED_BLOCKS, tiny_model
from tests.training.tiny_runs import save_model, tiny_tokenizer

Tensors = dict[str, torch.Tensor]


def change_config(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    weights = folder / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})


@pytest.mark.parametrize("head", ["architecture", "mean"])
@pytest.mark.parametrize(
    ("architecture", "settings", "found"),
    [
        ("bert", {"num_hidden_layers": 5}, r"lacks.*layer\.3"),  # the checkpoint has three
        ("bert", {"num_hidden_layers": 1}, r"no place for: .*encoder\.layer\.1.* and 29 more"),
        ("deberta-v2", {"num_hidden_layers": 1}, r"no place for: .*layer\.1"),
        ("gpt2", {"n_layer": 1}, r"no place for: .*h\.1"),
        ("llama", {"num_hidden_layers": 1}, r"no place for: .*layers\.1"),
        ("qwen2", {"model_type": "llama"}, r"no place for: .*layers\.0\.self_attn\.k_proj\.bias"),
    ],
)
def test_weights_of_another_configuration_are_refused(
    tmp_path: Path, architecture: str, settings: dict[str, object], found: str, head: str
) -> None:
    folder = Path(save_model(tmp_path, architecture))
    change_config(folder, **settings)
    with pytest.raises(DeltafitError, match=found):
        load(folder, head=head)


@pytest.mark.parametrize("head", ["architecture", "mean"])
@pytest.mark.parametrize(
    ("architecture", "lost"), [("bert", "embeddings.LayerNorm"), ("llama", "norm.weight")]
)
def test_a_norm_that_the_checkpoint_lacks_is_no_head(
    tmp_path: Path, architecture: str, lost: str, head: str
) -> None:
    folder = Path(save_model(tmp_path, architecture))
    change_tensors(
        folder, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(lost)}
    )
    with pytest.raises(DeltafitError, match=f"lacks, or holds in another shape: .*{lost}"):
        load(folder, head=head)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SHARED_BLOCKS])
def test_the_base_of_another_task_is_taken_without_its_head(
    tmp_path: Path, architecture: str
) -> None:
    language_model = AutoModelForCausalLM if architecture in DECODERS else AutoModelForMaskedLM
    config = tiny_model(architecture).config
    language_model.from_config(config).save_pretrained(tmp_path / "language")
    tiny_tokenizer(pad=architecture not in DECODERS).save_pretrained(tmp_path / "language")
    save_model(tmp_path / "classifier", architecture, task="classification")
    for folder in ("language", "classifier"):
        for head in ("architecture", "mean"):
            load(tmp_path / folder, ("no", "yes"), head=head)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("bert", ["embeddings.position_ids"]),
        ("gpt2", ["h.0.attn.bias", "h.0.attn.masked_bias"]),  # DialoGPT
        ("deberta-v2", ["embeddings.word_embeddings._weight"]),  # ViDeBERTa
        ("llama", ["layers.0.self_attn.rotary_emb.inv_freq"]),
        ("roberta", ["pooler.dense.weight", "pooler.dense.bias", "lm_head.bias"]),
    ],
)
def test_buffers_of_older_versions_and_heads_may_be_left_over(
    tmp_path: Path, architecture: str, names: list[str]
) -> None:
    folder = Path(save_model(tmp_path, architecture))
    change_tensors(folder, lambda tensors: tensors | {name: torch.ones(1) for name in names})
    for head in ("architecture", "mean"):
        load(folder, head=head)


def test_norms_under_their_first_names_are_found(tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path, "bert"))  # as bert-base-uncased is published
    expected = load(folder).model.state_dict()
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(tensors: Tensors) -> Tensors:
        for new, old in names.items():
            tensors = {f"{n.removesuffix(new)}{old}" if n.endswith(new) else n: t
                       for n, t in tensors.items()}  # fmt: skip
        return tensors

    change_tensors(folder, renamed)
    found = load(folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path))
    change_config(folder, vocab_size=80)
    with pytest.raises(DeltafitError, match="embedding"):
        load(str(folder))
