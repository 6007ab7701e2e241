"""Logits and frozen features for many texts, in batches sorted by length."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from deltafit.data import Tokenised, length_grouped, tokenise
from deltafit.engine import evaluating
from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier, batch_of, logits_of
from deltafit.tasks.execution import unpadded
from deltafit.tasks.pooling import POOLINGS, Pooling, pool

Rows = Sequence[Sequence[int]]
InferencePrecision = Literal["float32", "bf16"]

BATCH_TOKENS = 2048
"""Tokens in one forward pass, unless something else is asked for."""


def tokenise_for(
    classifier: Classifier,
    texts: Sequence[str],
    max_length: int,
    where: Callable[[int], str] | None = None,
) -> Tokenised:
    """Tokenise texts for a classifier; see ``tokenise``.

    Raises:
        DeltafitError: a text has a token that the model has no embedding of, or none at all.
    """
    tokens = tokenise(classifier.tokenizer, texts, max_length, where)
    embeddings = encoder_of(classifier.model).get_input_embeddings()  # type: ignore[operator]  # every transformers model has it
    for text, ids in zip(texts, tokens.input_ids, strict=True):
        if max(ids) >= embeddings.num_embeddings:
            raise DeltafitError(
                f"The tokenizer gives {text[:40]!r} the token {max(ids)}, but the model knows "
                f"{embeddings.num_embeddings:,} tokens. Tokenizer and model do not belong "
                "together, or tokens were added without model.resize_token_embeddings(...)."
            )
    return tokens


def compute_logits(
    classifier: Classifier,
    rows: Rows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    precision: InferencePrecision = "float32",
    progress: Callable[[int], None] = lambda texts: None,
) -> np.ndarray:
    """Return the logits of tokenised texts in their order, float32 ``[texts, labels]``.

    The model runs in evaluation mode, whatever mode it is in, and without padding where
    ``unpadded`` does.

    Args:
        classifier: its model may carry adapters, merged or not.
        rows: token ids of each text; none empty.
        batch_tokens: the most tokens in one forward pass, padding counted; a longer text has a
            pass of its own.
        precision: float32, whatever the model trained with, or mixed precision in bf16.
        progress: told after each forward pass how many texts were in it.

    Raises:
        UsageError: ``batch_tokens`` is not positive.
    """
    result = np.empty((len(rows), len(classifier.label_names)), dtype=np.float32)
    device = next(classifier.model.parameters()).device.type
    with _inference(classifier, rows, batch_tokens) as batches:
        for indices in batches:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                logits = logits_of(classifier.model, _batch(classifier, rows, indices))
            result[indices] = logits.float().cpu().numpy()
            progress(len(indices))
    return result


def compute_logits_alone(classifier: Classifier, rows: Rows) -> np.ndarray:
    """Return the logits of tokenised texts, float32 ``[texts, labels]``, each in a pass of its own.

    For proofs: what a text gives depends neither on others nor on how it was padded or packed.
    """
    result = np.empty((len(rows), len(classifier.label_names)), dtype=np.float32)
    with evaluating(classifier.model), torch.inference_mode():
        for index, row in enumerate(rows):
            logits = logits_of(classifier.model, batch_of(classifier, [row]))
            result[index] = logits[0].float().cpu().numpy()
    return result


def compute_features(
    classifier: Classifier,
    rows: Rows,
    *,
    poolings: Sequence[Pooling] = POOLINGS,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] = lambda texts: None,
) -> dict[Pooling, np.ndarray]:
    """Return the encoder's pooled features, one pass for all poolings, ``[texts, width]`` each.

    For the other arguments see ``compute_logits``.
    """
    encoder = encoder_of(classifier.model)
    result: dict[Pooling, np.ndarray] = {}
    with _inference(classifier, rows, batch_tokens, all_states=True) as batches:
        for indices in batches:
            batch = _batch(classifier, rows, indices)
            state: Tensor = encoder(**batch).last_hidden_state
            for pooling in poolings:
                pooled = pool(state, batch["attention_mask"], pooling).float().cpu().numpy()
                if pooling not in result:
                    result[pooling] = np.empty((len(rows), pooled.shape[1]), dtype=np.float32)
                result[pooling][indices] = pooled
            progress(len(indices))
    return result


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the part of a classifier that gives ``last_hidden_state``."""
    encoder = getattr(model, getattr(model, "base_model_prefix", "encoder"))
    assert isinstance(encoder, nn.Module)
    return encoder


@contextmanager
def _inference(
    classifier: Classifier, rows: Rows, batch_tokens: int, *, all_states: bool = False
) -> Iterator[list[list[int]]]:
    """Yield the indices of the rows of each forward pass, and let the model run them within."""
    batches = length_grouped([len(row) for row in rows], batch_tokens)
    with (
        unpadded(classifier, rows, batches, all_states=all_states),
        evaluating(classifier.model),
        torch.inference_mode(),
    ):
        yield batches


def _batch(classifier: Classifier, rows: Rows, indices: Sequence[int]) -> dict[str, Tensor]:
    return batch_of(classifier, [rows[index] for index in indices])
