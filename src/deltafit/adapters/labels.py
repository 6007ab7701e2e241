"""What a transformers model says of its labels goes with the head: its own loss counts by it.

Only attributes that are there are set; other models have none of them.
"""

from typing import Any

from torch import nn

Labels = tuple[Any, Any]  # the configuration's id2label and label2id


def switch_labels(model: nn.Module, before: int, now: int, aside: Labels | None) -> Labels | None:
    """Let the model speak of ``now`` labels if it spoke of ``before``; return what it said.

    Args:
        model: any module, its head resized from ``before`` outputs to ``now``.
        before: outputs until now.
        now: outputs from now on.
        aside: what to say, as an earlier call returned it; None for a head without label names.
    """
    speaker: Any = model
    config: Any = getattr(speaker, "config", None)
    if before == now or getattr(config, "num_labels", None) != before:
        return aside
    said = config.id2label, config.label2id
    if aside is None:
        config.num_labels = now  # which makes label names up
    else:
        config.id2label, config.label2id = aside
    if getattr(speaker, "num_labels", None) == before:
        speaker.num_labels = now
    return said
