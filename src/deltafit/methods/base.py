"""What a method is: a small frozen description of what is trained.

Three kinds exist. A *delta* method learns a change of each adapted layer's parameters and says, for
one layer, what the change is. An *insertion* adds computation to some of the model's modules, which
no change of parameters would do. A *replacement* trains whole parameters, stored per adapter. All
are data: printable, hashable, saved as JSON.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from torch import Generator, Tensor

from deltafit.errors import UsageError
from deltafit.methods.values import write


class Layer(Protocol):
    """One adapted layer as a method sees it, whatever its type.

    A layer maps ``inputs`` features to ``outputs``; its weight's view has shape
    ``[outputs, inputs]``, or ``[inputs, outputs]`` for a lookup (an embedding: one row a token).
    """

    inputs: int
    outputs: int
    lookup: bool
    training: bool
    bias: Tensor | None

    def view(self) -> Tensor:
        """Return the base's weight, in the view's shape."""

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of ``[outputs, r]`` and ``[r, inputs]`` in the weight's view."""

    def add_low_rank(
        self, y: Tensor, x: Tensor, right: Tensor, left: Tensor, factor: float
    ) -> Tensor:
        """Return ``y + factor · left · (right · x)``, ``[..., outputs]``, in y's dtype.

        The product of ``left`` and ``right`` is never formed.
        """

    def forward_with(self, deltas: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the layer's output with ``parameter + delta`` in place of each parameter."""


class ModelParts(Protocol):
    """The parameter names of a model, by part, as a replacement sees them."""

    def every(self) -> tuple[str, ...]:
        """Return every parameter's name."""

    def last_blocks(self, count: int) -> tuple[str, ...]:
        """Return the parameter names of the last ``count`` blocks and the norm behind them."""


GeneratorFor = Callable[[str], Generator]
Tensors = Mapping[str, Tensor]
"""A method's tensors in one layer, by its names for them."""


class StepHook(ABC):
    """What a method adds to the training steps of one run.

    Attributes:
        state: what decides how it goes on, changed in place; checkpoints keep it.
    """

    state: dict[str, Tensor]

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return what is added to a step's loss."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Change the tensors behind the optimiser's step, 1 the first; gradients still stand."""


@dataclass(frozen=True)
class Method(ABC):
    """What is trained. Subclasses are frozen dataclasses of JSON values."""

    command_line_name: ClassVar[str]
    result_name: ClassVar[str]
    default_learning_rate: ClassVar[float]

    def __post_init__(self) -> None:
        # Lists and mappings are welcome; as tuples they make the method hashable.
        for field in fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the names of the parameters trained whole, the head apart."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the method as JSON values; ``deltafit.methods.method_from_dict`` reads it."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"method": self.command_line_name, **settings}

    def __str__(self) -> str:
        """Return what ``deltafit.methods.parse_method`` reads back to the same method."""
        changed = ",".join(
            f"{field.name}={write(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"{self.command_line_name}:{changed}" if changed else self.command_line_name


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method with tensors of its own in some of the model's modules: its targets."""

    mixes: ClassVar[bool] = True
    """Whether rows of several adapters can share a pass: what it computes, it computes by token."""

    def patterns(self) -> tuple[str, ...]:
        """Return the ends of module names that settings are given for; each must be a target's."""
        return ()

    @abstractmethod
    def for_module(self, module_name: str) -> "LayerMethod":
        """Return the method as it applies to one module, its patterns resolved."""

    @abstractmethod
    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return the method's tensors for ``layer`` in float64 on the CPU.

        The model computes at first what its base does: Δ = 0, or what is inserted adds nothing.

        Args:
            layer: the layer to adapt.
            generator_for: gives the random generator of one tensor by its name, so that the
                values depend on the seed and the name alone, not on the order of construction.
        """

    def frozen_tensors(self, layer: Layer) -> tuple[str, ...]:
        """Return the names of tensors in ``layer`` that stay as they started."""
        return ()

    def rate_factors(self, layer: Layer) -> dict[str, float]:
        """Return what the learning rate is multiplied by, for tensors where it is not 1."""
        return {}

    def step_hook(self, layers: Sequence[Tensors], total_steps: int) -> StepHook | None:
        """Return what the method adds to training steps, if anything.

        Args:
            layers: its tensors in each layer.
            total_steps: optimiser steps of the whole run.
        """
        return None

    def kept(self, layers: Mapping[str, Tensors]) -> "LayerMethod":
        """Return the method by which a trained adapter is saved: how it was found is history.

        Args:
            layers: module name → its tensors there.
        """
        return self

    def kept_tensors(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return the tensors of ``layer`` as ``kept`` has them; they compute the same."""
        return dict(tensors)

    @abstractmethod
    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return the adapted output, given the base layer's input ``x`` and output ``y``."""


@dataclass(frozen=True)
class DeltaMethod(LayerMethod):
    """A method that learns a change Δ of each target layer's parameters.

    Raises:
        UsageError: a name is no text, or a layer's index no whole number.
    """

    target_modules: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    trained_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_all(self.layers or (), int, "layers", "block indices such as (0, -1)")
        names = "module names such as ('query', 'value')"
        check_all(self.trained_modules, str, "trained_modules", names)
        targets = self.target_modules
        if not isinstance(targets, str):
            check_all(targets or (), str, "target_modules", names)
        elif targets.lower() != "all-linear" and not targets.startswith("re:"):
            # So that the method's text says that this is an expression and no name.
            object.__setattr__(self, "target_modules", f"re:{targets}")

    @abstractmethod
    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{parameter name: Δ}``, each Δ in the layer's view."""

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return the adapted output, given the base layer's input ``x`` and output ``y``.

        The fallback computes the layer again with its deltas: slow, and right for every method.
        """
        return layer.forward_with(self.deltas(layer, tensors), x)


def check_all(values: object, kind: type, name: str, wanted: str) -> None:
    """Raise a UsageError unless ``values`` is a tuple of one kind."""
    if not isinstance(values, tuple) or any(type(value) is not kind for value in values):
        raise UsageError(f"{name} takes a tuple of {wanted}; got {values!r}.")


def check_pattern(values: object, name: str) -> None:
    """Raise a UsageError unless ``values`` are pairs of a module name and something."""
    pairs = isinstance(values, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in values
    )
    if not pairs:
        raise UsageError(
            f"{name} takes a number for each module name, such as {{'query': 4}}; got {values!r}."
        )
