"""What a method is: a small frozen description of what is trained.

Two kinds exist. A *delta* method learns a change of each adapted layer's parameters and says, for
one layer, what the change is. A *replacement* trains whole parameters, stored per adapter. Both
are data: printable, hashable, saved as JSON.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from torch import Generator, Tensor


class Layer(Protocol):
    """One adapted layer as a method sees it, whatever its type.

    A layer maps ``inputs`` features to ``outputs``; its weight's view has shape
    ``[outputs, inputs]``, or ``[inputs, outputs]`` for a lookup (an embedding: one row a token).
    """

    inputs: int
    outputs: int
    lookup: bool
    training: bool

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of ``[outputs, r]`` and ``[r, inputs]`` in the weight's view."""

    def low_rank(self, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        """Return ``left · (right · x)``, ``[..., outputs]``, without forming the product."""

    def forward_with(self, deltas: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the layer's output with ``parameter + delta`` in place of each parameter."""


class ModelParts(Protocol):
    """The parameter names of a model, by part, as a replacement sees them."""

    def every(self) -> tuple[str, ...]:
        """Return every parameter's name."""

    def last_blocks(self, count: int) -> tuple[str, ...]:
        """Return the parameter names of the last ``count`` blocks and the norm behind them."""


GeneratorFor = Callable[[str], Generator]


@dataclass(frozen=True)
class Method(ABC):
    """What is trained. Subclasses are frozen dataclasses of JSON values."""

    command_line_name: ClassVar[str]
    result_name: ClassVar[str]
    default_learning_rate: ClassVar[float]

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the names of the parameters trained whole, the head apart."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the method as JSON values; ``deltafit.methods.method_from_dict`` reads it."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"method": self.command_line_name, **settings}

    def __str__(self) -> str:
        changed = ",".join(
            f"{field.name}={_short(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"{self.command_line_name}:{changed}" if changed else self.command_line_name


def _short(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class DeltaMethod(Method):
    """A method that learns a change Δ of each target layer's parameters."""

    target_modules: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    trained_modules: tuple[str, ...] = ()

    @abstractmethod
    def for_module(self, module_name: str) -> "DeltaMethod":
        """Return the method as it applies to one module, its patterns resolved."""

    @abstractmethod
    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return the method's tensors for ``layer`` such that Δ = 0, in float64 on the CPU.

        Args:
            layer: the layer to adapt.
            generator_for: gives the random generator of one tensor by its name, so that the
                values depend on the seed and the name alone, not on the order of construction.
        """

    @abstractmethod
    def deltas(self, layer: Layer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``{parameter name: Δ}``, each Δ in the layer's view."""

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the adapted output, given the base layer's input ``x`` and output ``y``.

        The fallback computes the layer again with its deltas: slow, and right for every method.
        """
        return layer.forward_with(self.deltas(layer, tensors), x)
