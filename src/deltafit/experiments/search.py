"""What a search in a recipe asks for, as data."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from deltafit.errors import UsageError

Pruning = Literal["none", "successive-halving"]


@dataclass(frozen=True)
class Search:
    """How each row of a recipe gets settings of its own, by trials that validation rows judge.

    Attributes:
        space: setting of a method or of its run → a list of values to choose among, or a range,
            ``{low: 1e-5, high: 1e-2}``. It holds for all rows whose method has the setting.
            ``log`` says whether a range is gone through in equal factors, which it otherwise is
            where its high end is at least ten times the low one.
        trials: runs that each row may try, the row as it is written among them.
        minutes: of training after which a row begins no further trial.
        parameters: that a method of a searched size may train besides the head.
        pruning: ``"successive-halving"`` halts a trial after its first, second, fourth, eighth …
            evaluation unless it is in the better half of those that came so far.

    Raises:
        UsageError: a value is out of its range.
    """

    space: dict[str, Any]
    trials: int
    minutes: float | None = None
    parameters: int | None = None
    pruning: Pruning = "none"

    def __post_init__(self) -> None:
        # A row of one trial would be left as it is.
        if self.trials < 2:
            raise UsageError(f"trials must be a whole number of at least 2; got {self.trials}.")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"minutes must be a number above 0; got {self.minutes}.")
        if self.parameters is not None and self.parameters < 1:
            raise UsageError(f"parameters must be at least 1; got {self.parameters}.")
        if self.pruning not in get_args(Pruning):
            choices = ", ".join(get_args(Pruning))
            raise UsageError(f"pruning must be one of {choices}; got {self.pruning!r}.")
