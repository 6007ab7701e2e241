"""A classifier on a pooled encoder: one vector a text, one linear layer behind it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deltafit.errors import UsageError

Pooling = Literal["cls", "mean", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(last_hidden_state: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector a text.

    Args:
        last_hidden_state: ``[batch, length, width]``.
        attention_mask: ``[batch, length]``, 1 for tokens and 0 for padding, on either side.
        pooling: ``"cls"``, the first token; ``"mean"``, of all tokens; ``"last"`` token.

    Returns:
        ``[batch, width]``.
    """
    rows = torch.arange(len(last_hidden_state), device=last_hidden_state.device)
    if pooling == "cls":
        return last_hidden_state[rows, attention_mask.argmax(dim=1)]
    if pooling == "last":
        length = attention_mask.shape[1]
        return last_hidden_state[rows, length - 1 - attention_mask.flip(1).argmax(dim=1)]
    if pooling == "mean":
        mask = attention_mask.unsqueeze(-1).to(last_hidden_state.dtype)
        return (last_hidden_state * mask).sum(1) / mask.sum(1)
    raise UsageError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}.")


class PooledClassifier(nn.Module):
    """logits = W·dropout(pool(encoder(text))) + b.

    Args:
        encoder: a transformers model that gives ``last_hidden_state``.
        width: the width of that state.
        num_labels: how many classes.
        pooling: how tokens become one vector.
        dropout: probability of dropping a feature in training.
    """

    def __init__(
        self, encoder: nn.Module, width: int, num_labels: int, pooling: Pooling, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # What is known of the architecture, its default targets for one, is known of this too.
        self.config = encoder.config
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_labels)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def features(self, **inputs: Tensor) -> Tensor:
        """Return the pooled features, ``[batch, width]``, in float32."""
        state = self.encoder(**inputs).last_hidden_state
        return pool(state, inputs["attention_mask"], self.pooling).float()

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return logits, ``[batch, num_labels]``."""
        features = self.dropout(self.features(**inputs))
        logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
        return logits
