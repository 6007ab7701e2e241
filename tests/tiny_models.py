"""Tiny random models for tests: every architecture with defaults, in milliseconds and offline.

Import as ``from tests.tiny_models import tiny_model, tiny_inputs``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    PreTrainedModel,
)

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS = 64, 32, 48, 3, 4
PAD = 1  # RoBERTa, MPNet and OPT count positions from the pad id; 1 is right for all of them.
FIRST_WORD = 3  # ids 0, 1, 2 are begin, pad and end

_ENCODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
# Grouped-query attention with its own head size: query, key and output differ in shape.
_DECODER: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8}
# As DeBERTa v3 is published.
_DEBERTA: dict[str, Any] = {
    **_ENCODER,
    "pooler_hidden_size": HIDDEN,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
# Blocks of both kinds, each kind with rotary tables of its own, and a window shorter than rows.
_GEMMA3: dict[str, Any] = {
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
# Few distances told apart, so that tiny texts reach the longest.
_T5: dict[str, Any] = {
    "d_model": HIDDEN,
    "d_ff": INNER,
    "d_kv": 8,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}

_SETTINGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "distilbert": {"dim": HIDDEN, "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS},
    "electra": {**_ENCODER, "embedding_size": 16},
    "deberta-v2": _DEBERTA,
    "mpnet": _ENCODER,
    "modernbert": {**_ENCODER, "cls_token_id": 0, "sep_token_id": 2},
    "gpt2": {"n_embd": HIDDEN, "n_inner": INNER, "n_layer": LAYERS, "n_head": HEADS},
    "gpt_neox": _ENCODER,
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": {**_ENCODER, "num_key_value_heads": 2},
    "qwen3": {**_DECODER, "head_dim": 16},
    "gemma": _DECODER,
    "gemma2": {**_DECODER, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_DECODER, **_GEMMA3},
    "albert": {**_ENCODER, "embedding_size": 16},
    "convbert": {**_ENCODER, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3},
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
}

SHARED_BLOCKS = ("albert",)
"""Architectures that reuse one block for every layer."""

CONVOLUTIONAL = ("convbert",)
"""Architectures with convolutions in their blocks, and without default targets."""

ENCODERS_ALONE = ("t5", "mt5", "umt5")
"""Encoder-decoders whose own classifier runs both; tiny models are the encoder, a head pools it."""

ARCHITECTURES = tuple(
    n for n in _SETTINGS if n not in (*SHARED_BLOCKS, *CONVOLUTIONAL, *ENCODERS_ALONE)
)
"""Architectures with default targets; each has a sequence classification class."""

DECODERS = (
    *("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3"),
    *("gemma", "gemma2", "gemma3_text"),
)
"""Those of ``ARCHITECTURES`` whose classifier reads the last token."""


def tiny_model(
    architecture: str, *, num_labels: int = 3, task: str = "classification", seed: int = 0
) -> PreTrainedModel:
    """A random float32 model in evaluation mode (3 layers, width 32, 64 words).

    Args:
        architecture: a ``model_type`` of one of the lists above; of ``ENCODERS_ALONE`` for
            ``task="base"`` alone.
        num_labels: width of the classifier; unused for ``task="base"``.
        task: "classification", or "base" for the model without a head.
        seed: the same seed gives the same bits; torch's global generator is left as it was.
    """
    settings = _SETTINGS[architecture]
    length = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=num_labels,
        **{length: 64},
        **settings,
    )
    # The published 0.02 gives almost constant outputs at width 32, which would hide mistakes.
    config.update({"init_std" if architecture == "opt" else "initializer_range": 0.2})
    base = AutoModelForTextEncoding if architecture in ENCODERS_ALONE else AutoModel
    loader = {"classification": AutoModelForSequenceClassification, "base": base}[task]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: PreTrainedModel = loader.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases start at zero and norms at one: nothing to mistake
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_inputs(
    model: PreTrainedModel,
    batch: int = 3,
    length: int = 7,
    seed: int = 0,
    *,
    padding_side: str = "right",
) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, both int64 ``[batch, length]``.

    The first row is full; each later row is two tokens shorter (at least two remain), padded
    with the model's pad token. The words do not depend on the padding side.
    """
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(FIRST_WORD, VOCABULARY, (batch, length), generator=generator)
    input_ids = torch.full((batch, length), int(model.config.pad_token_id))
    attention_mask = torch.zeros(batch, length, dtype=torch.long)
    for row in range(batch):
        kept = max(2, length - 2 * row)
        where = slice(0, kept) if padding_side == "right" else slice(length - kept, length)
        input_ids[row, where] = words[row, :kept]
        attention_mask[row, where] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


class TwoTower(nn.Module):
    """A plain two-tower retriever, no transformers in it: [batch, 12], [batch, 20] → [batch]."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.user = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, width))
            self.item = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, width))
        self.eval()

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Inner product of the two towers' outputs."""
        return (self.user(user) * self.item(item)).sum(-1)
