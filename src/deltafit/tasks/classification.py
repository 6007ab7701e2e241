"""Text classification: a pretrained model with its head, and how texts become logits and loss."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltafit.data import ModelSource
from deltafit.engine import KeysAndValues
from deltafit.errors import UsageError
from deltafit.tasks.loading import (
    encoder_maker,
    load_architecture_classifier,
    load_encoder,
    load_structure,
    load_tokenizer,
)
from deltafit.tasks.pooling import PooledClassifier, Pooling

HeadKind = Literal["architecture", "cls", "mean", "last"]
_POOLED_HEAD = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class HeadSettings:
    """How logits are read off the model.

    Attributes:
        kind: the architecture's own classifier, or the pooling of one linear layer.
        dropout: of the pooled features in training; the architecture's own head has its own.

    Raises:
        UsageError: there is no such kind.
    """

    kind: HeadKind = "architecture"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise UsageError(
                f"The head must be one of {', '.join(get_args(HeadKind))}; got {self.kind!r}."
            )


@dataclass
class Classifier:
    """A pretrained model ready to classify.

    Attributes:
        model: gives logits for tokenised texts; see ``logits_of``.
        tokenizer: of the same model.
        label_names: class names, in the order of the logits.
        head: how logits are read off.
        head_parameters: names of the parameters that are trained as the head.
        source: where the base came from.
        decoder: whether the model reads from left to right.
        positions: whether position ids must be given for padded input (most decoders).
        new_head: whether the checkpoint did not hold the head's parameters.
        packs: whether the model gives the same without padding; None before anybody looked.
        reads: what lets its last block run for first tokens alone; None if the head reads others.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...]
    head: HeadSettings
    head_parameters: tuple[str, ...]
    source: ModelSource
    decoder: bool
    positions: bool
    new_head: bool = True
    packs: bool | None = None
    reads: KeysAndValues | None = None

    @property
    def pad_token_id(self) -> int:
        """The token that fills up a batch."""
        return int(self.tokenizer.pad_token_id)


def load_classifier(
    source: ModelSource, label_names: Sequence[str], head: HeadSettings, *, seed: int
) -> Classifier:
    """Load a pretrained model in float32 with a new head for the given labels.

    The head's starting values depend on the seed and its names alone. A pooled head starts at
    zero, so that every class is as likely as any other.

    Raises:
        DeltafitError: the model cannot be found or loaded.
        UsageError: the head is the first token's, and the model reads from left to right.
    """
    tokenizer, decoder = load_tokenizer(source)
    if decoder and head.kind == "cls":
        raise UsageError(
            f"{source.name} reads from left to right, so its first token knows nothing of the text "
            "and a cls head could learn nothing. Choose the head last or mean."
        )
    model: nn.Module
    new_head = True
    if head.kind == "architecture":
        model, head_parameters, new_head = load_architecture_classifier(
            source, tuple(label_names), tokenizer, seed
        )
        forward = model.forward
    else:
        encoder = load_encoder(source, tokenizer)
        model = _pooled(encoder, head, head.kind, len(label_names))
        head_parameters = _POOLED_HEAD
        forward = encoder.forward
    # Some decoders (BLOOM, XLNet) know places from the attention mask alone.
    positions = decoder and "position_ids" in inspect.signature(forward).parameters
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Classifier(
        model, tokenizer, tuple(label_names), head, head_parameters, source, decoder, positions,
        new_head,
    )  # fmt: skip


def classifier_structure(
    source: ModelSource, head: HeadSettings
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a classifier's modules without weights, on the meta device, and its head's parameters.

    What the checkpoint lacks is not looked up: the head is all that lies outside the encoder.

    Raises:
        DeltafitError: there is no such model, or transformers has no text classifier for it.
    """
    if head.kind != "architecture":
        encoder = load_structure(source, encoder_maker(source))
        return _pooled(encoder, head, head.kind, num_labels=2), _POOLED_HEAD
    model = load_structure(source)
    prefix = f"{model.base_model_prefix}."
    return model, tuple(name for name, _ in model.named_parameters() if not name.startswith(prefix))


def _pooled(
    encoder: PreTrainedModel, head: HeadSettings, pooling: Pooling, num_labels: int
) -> PooledClassifier:
    width = int(encoder.config.get_text_config().hidden_size)
    return PooledClassifier(encoder, width, num_labels, pooling, head.dropout)


def collate(
    rows: Sequence[Sequence[int]], pad_token_id: int, *, positions: bool, left: bool = False
) -> dict[str, Tensor]:
    """Pad token rows to one length.

    Args:
        rows: token ids of each text; none empty.
        pad_token_id: what fills up.
        positions: also give ``position_ids`` counted from each text's own first token, which
            decoders with absolute positions need when padded on the left.
        left: pad on the left.

    Returns:
        ``input_ids`` and ``attention_mask`` (and ``position_ids``), each ``[batch, longest]``.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    longest = int(lengths.max())
    steps = np.arange(longest)
    # From left to right and row by row, as the tokens come.
    real = steps >= (longest - lengths)[:, None] if left else steps < lengths[:, None]
    ids = np.full(real.shape, pad_token_id, dtype=np.int64)
    ids[real] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
    attention_mask = torch.from_numpy(real.astype(np.int64))
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": attention_mask}
    if positions:
        batch["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return batch


def batch_of(classifier: Classifier, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return token rows as the classifier's model takes them, on its device; see ``collate``."""
    device = next(classifier.model.parameters()).device
    batch = collate(rows, classifier.pad_token_id, positions=classifier.positions)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of a collated batch, ``[batch, num_labels]``."""
    output: Any = model(**batch)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy over the batch, in float32.

    Args:
        logits: ``[batch, num_labels]``.
        labels: ``[batch]``.
        class_weights: ``[num_labels]``; the mean is weighted by them, as torch does.
        label_smoothing: share of the target spread evenly over all classes.
    """
    return functional.cross_entropy(
        logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing
    )
