"""Models of pictures and of sound from transformers, adapted at their convolutions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merged,
    read_adapter,
    save_adapter,
)
from deltafit.adapters.targets import select_targets
from deltafit.engine import mixed
from deltafit.methods import DoRA, LoKr, LoRA
from tests.adapters.adapted import EXACT, bits, randomise

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 16, "image_size": 8, "patch_size": 4, **_SMALL},
    "convnext": {"hidden_sizes": [8, 12], "depths": [1, 2], "num_stages": 2, "patch_size": 2},
    "whisper": {
        "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
        "num_mel_bins": 6, "max_source_positions": 8, "classifier_proj_size": 8, "vocab_size": 20,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
}  # fmt: skip
CONVOLUTIONS = {
    "vit": ("projection",),
    "convnext": ("dwconv", "patch_embeddings", "downsampling_layer.1"),
    "whisper": ("conv1", "conv2"),
}


def build(architecture: str) -> PreTrainedModel:
    config = AutoConfig.for_model(architecture, num_labels=3, **MODELS[architecture])
    sound = architecture == "whisper"
    loader = AutoModelForAudioClassification if sound else AutoModelForImageClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = loader.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def seen(architecture: str, rows: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if architecture == "whisper":
        return {"input_features": torch.randn(rows, 6, 16, generator=generator)}
    return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}


def classified(architecture: str) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(**seen(architecture)).logits


@pytest.mark.parametrize("method", [LoRA, DoRA])
@pytest.mark.parametrize("architecture", MODELS)
def test_adapted_trained_saved_and_merged(
    architecture: str, method: type[LoRA], tmp_path: Path
) -> None:
    model, logits = build(architecture), classified(architecture)
    base = logits(model)
    weights = {n: bits(p) for n, p in model.named_parameters()}
    adapt(model, method(CONVOLUTIONS[architecture], rank=2))
    torch.testing.assert_close(logits(model), base, rtol=1e-5, atol=1e-6)
    tensors = adapter_tensors(model, "default")
    optimiser = torch.optim.Adam(tensors.values(), lr=0.03)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(logits(model), torch.tensor([0, 1, 2, 0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    adapted = logits(model)
    save_adapter(model, tmp_path)
    again = build(architecture)
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(logits(again), adapted)
    with merged(model):
        torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-5)
    assert {n: bits(p) for n, p in model.named_parameters() if n in weights} == weights
    # PEFT has no LoRA with groups.
    assert (tmp_path / "adapter_config.json").exists() is (architecture != "convnext")
    if architecture == "vit":  # Whisper asks its convolutions for a stride, which PEFT's lack
        theirs = peft.PeftModel.from_pretrained(build(architecture), tmp_path).eval()
        torch.testing.assert_close(logits(theirs), adapted, **EXACT)


@pytest.mark.parametrize("architecture", MODELS)
def test_rows_of_several_adapters_and_of_linear_layers(architecture: str) -> None:
    model, logits = build(architecture), classified(architecture)
    expected = {None: logits(model)}
    linear = select_targets(model, "all-linear", exclude=("classifier", "projector"))
    convolutions = select_targets(model, CONVOLUTIONS[architecture])
    assert not set(linear) & set(convolutions)
    for name, method in {
        "convolutions": LoRA(convolutions, rank=2),
        "both": LoKr((*linear, *convolutions), rank=2),
    }.items():
        adapt(model, method, name=name)
        randomise(model, name)
        expected[name] = logits(model)
    with mixed(model, [("both", 1), (None, 1), ("convolutions", 2)]):
        found = logits(model)
    wanted = torch.cat([expected["both"][:1], expected[None][1:2], expected["convolutions"][2:]])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, expected[None], atol=1e-2)
