"""Freezing what lies lowest: Lee et al., "What Would Elsa Do?", 2019 (arXiv:1911.03090)."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.methods.base import Method, ModelParts
from deltafit.methods.checks import check_whole


@dataclass(frozen=True)
class FreezeFirst(Method):
    """Freeze the embeddings and the first ``count`` blocks; train all the rest and the head.

    Raises:
        UsageError: ``count`` is not a whole number of at least 0.
    """

    command_line_name: ClassVar[str] = "freeze-first"
    result_name: ClassVar[str] = "freeze_first"
    summary: ClassVar[str] = "all but the embeddings and the first block(s)"
    # Full fine-tuning's, which this is of fewer parameters.
    default_learning_rate: ClassVar[float] = 5e-5

    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.count, "count", least=0)

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the names of what lies above the first blocks."""
        return parts.above_blocks(self.count)
