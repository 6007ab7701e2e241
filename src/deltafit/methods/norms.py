"""Training normalisation layers: Qi et al., "LN-tuning", 2022 (arXiv:2211.08682)."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.methods.base import Method, ModelParts


@dataclass(frozen=True)
class Norms(Method):
    """Train gain and bias of every normalisation layer, RMSNorm's gain too, and the head."""

    command_line_name: ClassVar[str] = "norms"
    result_name: ClassVar[str] = "norms"
    summary: ClassVar[str] = "gain and bias of normalisation layers, and the head"
    # BitFit's: vectors of the same size, half of them the very same.
    default_learning_rate: ClassVar[float] = 1e-3

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the names of the norms' parameters."""
        return parts.norms()
