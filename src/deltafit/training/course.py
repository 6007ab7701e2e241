"""What a run learns from, and where it stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_NEWEST_SHARE = 0.1  # of the latest step in the running loss: it remembers about ten steps


@dataclass(frozen=True)
class Examples:
    """Tokenised texts and their label indices."""

    rows: Sequence[Sequence[int]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Course:
    """Where a run stands; kept in every checkpoint as JSON.

    Attributes:
        step: optimiser steps applied.
        seconds: spent in training steps alone.
        examples: rows seen.
        history: one entry an evaluation: step, epoch, train_loss, validation figures.
        best_step: the step of the best evaluation; None before the first.
        waited: evaluations since then.
        notes: sentences for the person.
        loss_sum: training loss times rows since the last evaluation.
        loss_rows: rows since the last evaluation.
        first_loss: of the first step; None before it.
        running_loss: of the latest steps, the older ones fading.
        kept: whether the states of frozen layers are kept; None before it was found out.
        packed: whether the blocks run without padding; None before it was found out.
        first_tokens: whether the last block runs for first tokens alone; decided with ``packed``.
        precision: float32, bf16 or fp16; None before it was decided.
        attention_precision: of attention's products, where those with frozen weights are in bf16;
            else, and before it was decided, None.
        failure: why the run failed, if it did while others went on.
    """

    step: int = 0
    seconds: float = 0.0
    examples: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    waited: int = 0
    notes: list[str] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_rows: int = 0
    first_loss: float | None = None
    running_loss: float = 0.0
    kept: bool | None = None
    packed: bool | None = None
    first_tokens: bool | None = None
    precision: str | None = None
    attention_precision: str | None = None
    failure: str | None = None

    def count(self, rows: int, loss: float, seconds: float) -> None:
        """Take a step into account that was applied to ``rows`` rows."""
        if self.first_loss is None:
            self.first_loss = self.running_loss = loss
        self.step += 1
        self.examples += rows
        self.seconds += seconds
        self.loss_sum += loss * rows
        self.loss_rows += rows
        self.running_loss += (loss - self.running_loss) * _NEWEST_SHARE

    def entry_of(self, step: int | None) -> dict[str, Any] | None:
        """Return the history's entry of a step."""
        return next((entry for entry in self.history if entry["step"] == step), None)
