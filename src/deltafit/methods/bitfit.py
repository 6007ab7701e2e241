"""Training biases alone: Ben Zaken et al., "BitFit", 2021 (arXiv:2106.10199), section 3."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.methods.base import Method, ModelParts


@dataclass(frozen=True)
class BitFit(Method):
    """Train every bias of the model, norms' included, and the head."""

    command_line_name: ClassVar[str] = "bitfit"
    result_name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "every bias, and the head"
    # What the authors' code has: github.com/benzakenelad/BitFit, run_glue.py.
    default_learning_rate: ClassVar[float] = 1e-3

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the biases' names."""
        return parts.biases()
