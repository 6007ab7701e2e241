"""Training the head alone: the pretrained model stays as it is."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.methods.base import Method


@dataclass(frozen=True)
class Head(Method):
    """Train the new head alone, on the frozen model's features."""

    command_line_name: ClassVar[str] = "head"
    result_name: ClassVar[str] = "last_layer"
    summary: ClassVar[str] = "the new head alone"
    default_learning_rate: ClassVar[float] = 5e-3
