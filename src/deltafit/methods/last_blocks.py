"""Training the last blocks of the stack and the head; what lies below stays as it is."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.methods.base import Method, ModelParts
from deltafit.methods.checks import check_whole


@dataclass(frozen=True)
class LastBlocks(Method):
    """Train the last ``count`` blocks, the norm behind them if there is one, and the head.

    Raises:
        UsageError: ``count`` is not a whole number of at least 1.
    """

    command_line_name: ClassVar[str] = "last-block"
    result_name: ClassVar[str] = "last_block"
    summary: ClassVar[str] = "the last block(s) and the head"
    default_learning_rate: ClassVar[float] = 1e-4

    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.count, "count")

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the parameters of the last blocks."""
        return parts.last_blocks(self.count)
