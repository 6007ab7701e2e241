"""What a method is: a small frozen description of what is trained.

Three kinds exist. A *delta* method (``delta``) learns a change of each adapted layer's parameters
and says, for one layer, what the change is. An *insertion* (``insertion``) adds computation to some
of the model's modules, which no change of parameters would do. A *replacement* trains whole
parameters, stored per adapter. All are data: printable, hashable, saved as JSON.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol

from torch import Generator, Tensor

from deltafit.methods.values import changed, write


class Layer(Protocol):
    """One adapted layer as a method sees it, whatever its type.

    A layer maps ``inputs`` features to ``outputs``; its weight's view has shape
    ``[outputs, inputs]``, or ``[inputs, outputs]`` for a lookup (an embedding: one row a token).

    A convolution does so wherever its kernel goes, in each of its groups of channels: its inputs
    are a group's channels times the ``window`` values that the kernel covers in one, and each group
    makes its share of the outputs. x and y are then ``[..., channels, *positions]``. All other
    layers have one group and a window of 1.
    """

    inputs: int
    outputs: int
    lookup: bool
    convolution: bool
    groups: int
    window: int
    training: bool
    bias: Tensor | None

    def view(self) -> Tensor:
        """Return the base's weight, in the view's shape."""

    def by_feature(self, vector: Tensor) -> Tensor:
        """Return ``vector``, a number a feature, in the shape that multiplies x or y so."""

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of ``[outputs, r]`` and ``[r, inputs]`` in the weight's view."""

    def drop(self, x: Tensor, p: float) -> Tensor:
        """Return ``x``, in training with each element zero with probability ``p``, else x/(1-p)."""

    def lowered(self, x: Tensor, right: Tensor) -> Tensor:
        """Return ``right · x``, ``[..., r]``, for ``right`` of ``[r, inputs]``.

        ``x`` is ``[..., inputs]``, or token indices ``[...]`` for a lookup; not for convolutions.
        """

    def add_low_rank(
        self, y: Tensor, x: Tensor, right: Tensor, left: Tensor, factor: float
    ) -> Tensor:
        """Return ``y + factor · left · right · x``, ``[..., outputs]``, in y's dtype.

        The products are taken in the order that is cheapest for their shapes. At usual ranks that
        of ``left`` and ``right`` is never formed.
        """

    def forward_with(self, deltas: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the layer's output with ``parameter + delta`` in place of each parameter."""


class ModelParts(Protocol):
    """The parameter names of a model, by part, as a replacement sees them."""

    def every(self) -> tuple[str, ...]:
        """Return every parameter's name."""

    def last_blocks(self, count: int) -> tuple[str, ...]:
        """Return the parameter names of the last ``count`` blocks and the norm behind them."""

    def above_blocks(self, count: int) -> tuple[str, ...]:
        """Return the names of all but the first ``count`` blocks and what feeds them."""

    def biases(self) -> tuple[str, ...]:
        """Return the names of all biases; there are some."""

    def norms(self) -> tuple[str, ...]:
        """Return the names of the parameters of normalisation layers; there are some."""

    def in_modules(self, pattern: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of all parameters in the modules that ``pattern`` chooses."""


GeneratorFor = Callable[[str], Generator]
Tensors = Mapping[str, Tensor]
"""A method's tensors in one layer, by its names for them."""

Statistic = Literal["inputs", "gradient", "rounding"]
"""What a method may need to know of each layer before it starts, on the CPU.

``"inputs"``: ``mean``, ``[inputs]``, and ``second_moment``, ``[inputs, inputs]``, of what a layer
is called with, over the tokens of a sample, in float64. ``"gradient"``: ``gradient``, of the loss
summed over a sample with respect to the weight, in the weight's view and in float64.
``"rounding"``: ``error``, what storing the weight in few bits took from it, in its view and in
float32; of layers that are stored so alone.
"""


class StepHook(ABC):
    """What a method adds to the training steps of one run.

    Attributes:
        state: what decides how it goes on, changed in place; checkpoints keep it.
    """

    state: dict[str, Tensor]

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return what is added to a step's loss."""

    def settled(self, step: int) -> bool:
        """Return whether what is trained after a step is of the kind that is to be kept."""
        return True

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Change the tensors behind the optimiser's step, 1 the first; gradients still stand."""


@dataclass(frozen=True)
class Method(ABC):
    """What is trained. Subclasses are frozen dataclasses of JSON values.

    Attributes:
        command_line_name: as people write it.
        result_name: as result files have it.
        summary: what is trained, in a few words, for the tables of the documents.
        default_learning_rate: of everything but the head.
    """

    command_line_name: ClassVar[str]
    result_name: ClassVar[str]
    summary: ClassVar[str]
    default_learning_rate: ClassVar[float]
    size_setting: ClassVar[str | None] = None
    """The setting by which the method trains more or less; see ``with_size``."""

    def __post_init__(self) -> None:
        # Lists and mappings are welcome; as tuples they make the method hashable.
        for field in fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))

    @property
    def added_tokens(self) -> int:
        """How many tokens it puts before every text, which run through the blocks with it."""
        return 0

    @property
    def taken_positions(self) -> int:
        """How many of a model's positions it takes before every text."""
        return self.added_tokens

    def trained_parameters(self, parts: ModelParts) -> tuple[str, ...]:
        """Return the names of the parameters trained whole, the head apart."""
        return ()

    def with_size(self, size: int) -> "Method":
        """Return the method with another value of its ``size_setting``, larger for a larger size.

        Args:
            size: at least 1.

        Raises:
            ValueError: it has none.
        """
        if self.size_setting is None:
            raise ValueError(f"{self.command_line_name} has no setting that says its size.")
        return replace(self, **{self.size_setting: size})

    def to_dict(self) -> dict[str, Any]:
        """Return the method as JSON values; ``deltafit.methods.method_from_dict`` reads it."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"method": self.command_line_name, **settings}

    def __str__(self) -> str:
        """Return what ``deltafit.methods.parse_method`` reads back to the same method."""
        text = ",".join(f"{name}={write(value)}" for name, value in changed(self).items())
        return f"{self.command_line_name}:{text}" if text else self.command_line_name


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method with tensors of its own in some of the model's modules: its targets.

    Attributes:
        apart: why rows of several adapters cannot share a pass; None where they can, since what it
            computes, it computes token by token.
    """

    apart: ClassVar[str | None] = None

    def patterns(self) -> tuple[str, ...]:
        """Return what settings are given for: ends of module names, or expressions (``re:``).

        Each must mean a target.
        """
        return ()

    def for_module(self, module_name: str) -> "LayerMethod":
        """Return the method as it applies to one module: itself, unless it has patterns."""
        return self

    @abstractmethod
    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        """Return the method's tensors for ``layer``, in float64 on the CPU.

        The model computes at first what its base does: Δ = 0, or what is inserted adds nothing.
        Virtual tokens are the exception.

        Args:
            layer: the layer to adapt.
            generator_for: gives the random generator of one tensor by its name, so that the
                values depend on the seed and the name alone, not on the order of construction.
        """

    def shared_tensors(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Return frozen tensors that all layers compute with, on the CPU; kept once, not a layer.

        They depend on the method and the layers' shapes alone, so that they need not be saved.
        """
        return {}

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

    def pre(self, layer: Layer, x: Tensor, tensors: Tensors) -> Tensor:
        """Return what the base layer is given in place of its input ``x``, in x's dtype."""
        return x

    @abstractmethod
    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return the adapted output, given the layer's input ``x`` and the base's output ``y``.

        ``y`` is what the base gives for ``pre`` of ``x``.
        """
