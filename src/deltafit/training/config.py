"""What a run is, as data: base model, texts, method, head and hyperparameters."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from deltafit.errors import UsageError
from deltafit.files import sha256_of_json
from deltafit.methods import Method, method_from_dict
from deltafit.tasks.pooling import POOLINGS
from deltafit.training.settings import TrainingSettings

HeadChoice = Literal["architecture", "cls", "mean", "last", "auto"]
HeadStart = Literal["new", "probe"]


@dataclass(frozen=True)
class DataConfig:
    """Where the texts come from and how they are split; see ``deltafit.data.load_splits``."""

    data: str
    test_data: str | None = None
    validation: str = "0.1"
    text_column: str | None = None
    label_column: str | None = None
    balance: bool = False
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class HeadConfig:
    """Which head is trained, and from where it starts.

    Attributes:
        kind: the architecture's own, a pooling, or ``"auto"``: the pooling whose probe does best
            on the validation rows.
        start: ``"new"``, or ``"probe"``: logistic regression on the frozen features.
        dropout: of the pooled features in training.

    Raises:
        UsageError: a choice is unknown, or the architecture's own head is to start from a probe.
    """

    kind: HeadChoice = "architecture"
    start: HeadStart = "new"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("head", self.kind, get_args(HeadChoice)),
            ("head start", self.start, get_args(HeadStart)),
        ):
            if value not in choices:
                raise UsageError(f"The {name} must be one of {', '.join(choices)}; got {value!r}.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"The head's dropout must be in [0, 1); got {self.dropout}.")
        if self.kind == "architecture" and (self.start == "probe" or self.dropout):
            raise UsageError(
                "The architecture's own head has layers of its own, so it can neither start from a "
                f"linear probe nor take another dropout. Choose a head of {', '.join(POOLINGS)} or "
                "auto."
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result."""

    model: str
    data: DataConfig
    method: Method
    head: HeadConfig = field(default_factory=HeadConfig)
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    @property
    def learning_rate(self) -> float:
        """The highest rate of everything but the head."""
        return self.settings.learning_rate or self.method.default_learning_rate

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

    def hash(self, data_hash: str) -> str:
        """Return a name for the run's result: the same configuration on the same texts."""
        return sha256_of_json({**self.to_dict(), "data_hash": data_hash})[:16]
