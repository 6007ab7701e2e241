"""Logits and frozen features for many texts, in float32, batches sorted by length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deltafit.data import Tokenised, length_grouped, tokenise
from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier, batch_of, logits_of
from deltafit.tasks.pooling import POOLINGS, Pooling, pool

Rows = Sequence[Sequence[int]]


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
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda texts: None,
) -> np.ndarray:
    """Return the logits of tokenised texts in their order, float32 ``[texts, labels]``.

    The model runs in evaluation mode and without mixed precision, whatever it trained with. After
    each forward pass ``progress`` is told how many texts were in it.
    """
    width = len(classifier.label_names)
    result = np.empty((len(rows), width), dtype=np.float32)
    for indices, batch in _batches(classifier, rows, batch_size):
        result[indices] = logits_of(classifier.model, batch).float().cpu().numpy()
        progress(len(indices))
    return result


def compute_features(
    classifier: Classifier,
    rows: Rows,
    *,
    poolings: Sequence[Pooling] = POOLINGS,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda texts: None,
) -> dict[Pooling, np.ndarray]:
    """Return the encoder's pooled features, one pass for all poolings, ``[texts, width]`` each.

    After each forward pass ``progress`` is told how many texts were in it.
    """
    encoder = encoder_of(classifier.model)
    result: dict[Pooling, np.ndarray] = {}
    for indices, batch in _batches(classifier, rows, batch_size):
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


def _batches(
    classifier: Classifier, rows: Rows, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    model = classifier.model
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for indices in length_grouped([len(row) for row in rows], batch_size):
                yield indices, batch_of(classifier, [rows[index] for index in indices])
    finally:
        model.train(training)
