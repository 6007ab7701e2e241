"""The interface of delta methods: what learns a change of layers' parameters."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deltafit.methods.base import GeneratorFor, Layer, LayerMethod, Method, Statistic, Tensors
from deltafit.methods.checks import EXPRESSION, check_layers, check_names


@dataclass(frozen=True)
class DeltaMethod(LayerMethod):
    """A method that learns a change Δ of each target layer's parameters.

    Its tensors start such that Δ = 0 (or makes up for rounding); where it names a ``statistic``, by
    ``initialise_from``.

    Attributes:
        default_targets: architecture → what ``target_modules`` of None means there; None for the
            usual ones.
        convolves: whether ``pre`` and ``post`` hold for convolutions; those are run with their
            parameters changed where not.

    Raises:
        UsageError: a name is no text, or a layer's index no whole number.
    """

    default_targets: ClassVar[Mapping[str, str | tuple[str, ...]] | None] = None
    convolves: ClassVar[bool] = False

    target_modules: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    trained_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        check_names(self.trained_modules, "trained_modules")
        targets = self.target_modules
        if not isinstance(targets, str):
            check_names(targets or (), "target_modules")
        elif targets.lower() != "all-linear" and not targets.startswith(EXPRESSION):
            # So that the method's text says that this is an expression and no name.
            object.__setattr__(self, "target_modules", f"{EXPRESSION}{targets}")

    def statistic(self) -> Statistic | None:
        """Return what the method must know of each of its layers before it starts, if anything."""
        return None

    def informed(self, statistics: Mapping[str, Tensors]) -> "DeltaMethod":
        """Return the method with what data decides for all layers together, such as their ranks.

        Args:
            statistics: module name → what ``statistic`` names.
        """
        return self

    def initialise_from(
        self, statistic: Tensors, layer: Layer, generator_for: GeneratorFor
    ) -> dict[str, Tensor]:
        """Return what ``initialise`` says, given what is known of the layer from data.

        Args:
            statistic: what ``statistic`` names, of this layer; empty if it names nothing, and of
                rounding where there is none.
            layer: as for ``initialise``.
            generator_for: as for ``initialise``.
        """
        return self.initialise(layer, generator_for)

    @abstractmethod
    def deltas(self, layer: Layer, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{parameter name: Δ}``, each Δ in the layer's view."""

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return the adapted output; see ``LayerMethod``.

        The fallback computes the layer again with its deltas: slow, and right for every method.
        """
        return layer.forward_with(self.deltas(layer, tensors), x)


def corrects_rounding(method: Method) -> bool:
    """Return whether a method starts from what storing the base in few bits took from it."""
    return isinstance(method, DeltaMethod) and method.statistic() == "rounding"
