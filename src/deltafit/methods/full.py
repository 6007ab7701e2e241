"""Full fine-tuning: every parameter is trained."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.methods.base import Method, ModelParts


@dataclass(frozen=True)
class Full(Method):
    """Train every parameter of the model, head included."""

    command_line_name: ClassVar[str] = "full"
    result_name: ClassVar[str] = "all"
    summary: ClassVar[str] = "every parameter"
    default_learning_rate: ClassVar[float] = 5e-5

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return every parameter's name."""
        return parts.every()
