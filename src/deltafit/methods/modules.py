"""Training modules of one's own choice whole; the rest of the pretrained model stays as it is."""

from dataclasses import dataclass
from typing import ClassVar

from deltafit.errors import UsageError
from deltafit.methods.base import Method, ModelParts
from deltafit.methods.checks import EXPRESSION


@dataclass(frozen=True)
class Modules(Method):
    """Train every parameter of the chosen modules, whatever they are, and the head.

    Args:
        pattern: module names, each matched by whole dotted segments at the end of a module's name
            (``("attention", "layer.5")``; one may stand alone); or a text that begins with
            ``re:``, a regular expression for the whole name.

    Raises:
        UsageError: no module is named, or a name is no text.
    """

    command_line_name: ClassVar[str] = "modules"
    result_name: ClassVar[str] = "modules"
    summary: ClassVar[str] = "every parameter of chosen modules, and the head"
    default_learning_rate: ClassVar[float] = 1e-4  # the last block's

    pattern: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.pattern
        if isinstance(given, str) and not given.startswith(EXPRESSION):
            object.__setattr__(self, "pattern", (given,))
        elif not isinstance(given, str | tuple) or any(type(name) is not str for name in given):
            raise UsageError(
                f"pattern takes module names such as ('attention', 'layer.5'); got {given!r}."
            )
        if not all(self.pattern) or not self.pattern:
            raise UsageError(
                "Name the modules to train, such as modules:pattern=attention+layer.5, or give an "
                r"expression for their whole names, such as modules:pattern=re:.*\.attention."
            )

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the names of the chosen modules' parameters."""
        return parts.in_modules(self.pattern)
