"""What a run is, as data: base model, texts, method, head and hyperparameters."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deltafit.errors import UsageError
from deltafit.methods import Head, LayerMethod, Method, method_from_dict
from deltafit.methods.delta import corrects_rounding
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings


def head_rate_of(method: Method, head: HeadConfig, settings: TrainingSettings) -> float:
    """Return the highest learning rate of the head, if the checkpoint brings no finished one.

    Where none is asked for, a new head learns at the rate of a head alone, or at the method's where
    that is higher: at LoRA's, 77 classes are hardly learned in a few epochs. One that starts from a
    probe has learned, and follows the method.
    """
    if settings.head_learning_rate is not None:
        return settings.head_learning_rate
    follows = settings.learning_rate or method.default_learning_rate
    if head.head_start == "probe" or isinstance(method, Head):
        return follows
    return max(follows, Head.default_learning_rate)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result.

    Raises:
        UsageError: the method trains the base weights themselves, and they are to be quantised; or
            it makes up for their rounding, and they are not.
    """

    model: str
    data: DataConfig
    method: Method
    head: HeadConfig = field(default_factory=HeadConfig)
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        stored = self.settings.base_weights
        if stored != "float32" and not isinstance(self.method, LayerMethod | Head):
            raise UsageError(
                f"{self.method.command_line_name} trains the base's own weights, which "
                f"--base-weights {stored} stores in few bits and freezes. Choose head or a method "
                "such as lora, or leave them in float32."
            )
        if stored == "float32" and corrects_rounding(self.method):
            raise UsageError(
                f"{self.method} starts from what storing the base's weights in few bits takes from "
                "them, and in float32 they lose nothing. Add --base-weights nf4 or int8, or choose "
                "another start."
            )

    @property
    def learning_rate(self) -> float:
        """The highest rate of everything but the head."""
        return self.settings.learning_rate or self.method.default_learning_rate

    @property
    def head_learning_rate(self) -> float:
        """The highest rate of the head, if the checkpoint does not bring a finished one."""
        return head_rate_of(self.method, self.head, self.settings)

    def decided_settings(self, *, new_head: bool) -> TrainingSettings:
        """Return the settings with both learning rates decided.

        Args:
            new_head: whether the checkpoint lacks the head. A finished one follows the method,
                where no rate is asked for.
        """
        asked = self.settings.head_learning_rate
        follows = asked is None and not new_head
        return replace(
            self.settings,
            learning_rate=self.learning_rate,
            head_learning_rate=self.learning_rate if follows else self.head_learning_rate,
        )

    @property
    def label(self) -> str:
        """What the run is called where its method and its seed tell it from others."""
        return f"{self.method}, seed {self.settings.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON values."""
        return {
            "model": self.model,
            "data": asdict(self.data),
            "method": self.method.to_dict(),
            "head": asdict(self.head),
            "settings": asdict(self.settings),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "RunConfig":
        """Return the run that ``to_dict`` described."""
        return cls(
            model=content["model"],
            data=DataConfig(**content["data"]),
            method=method_from_dict(content["method"]),
            head=HeadConfig(**content["head"]),
            settings=TrainingSettings(**content["settings"]),
        )
