"""PEFT's LoHa and LoKr files, which come from LyCORIS: written from ours, and read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.convolution import ConvolutionView, kernels_as_rows
from deltafit.adapters.layers import view_of
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.peft_format import PeftFormat, expression_for, names_of
from deltafit.adapters.peft_lora import pads_otherwise
from deltafit.adapters.views import Conv1DView
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import DeltaMethod, LayerMethod, LoHa, LoKr, Method
from deltafit.methods.loha import NAMES
from deltafit.methods.lokr import FIRST, LEFT, RIGHT, SECOND

_NUMBERS = {"rank": ("r", 8), "alpha": ("alpha", 8)}
# Settings with which layers differ: no place for them here.
_BY_LAYER = ("rank_pattern", "alpha_pattern")
_UNDERSTOOD = frozenset(
    # Dropout of rows of Δ and of whole modules is of training alone.
    {
        *("r", "alpha", "init_weights", "rank_dropout", "module_dropout", *_BY_LAYER),
        "use_effective_conv2d",
    }
)


class LyCORISFormat(PeftFormat):
    """Factors in our shapes under our names; one rank and one alpha for all layers.

    Attributes:
        kind: the method.
        factors: names of a layer's tensors.
        numbers: our setting → PEFT's key and its default.
    """

    lookups: ClassVar[bool] = False
    understood: ClassVar[frozenset[str]] = _UNDERSTOOD
    kind: ClassVar[type[DeltaMethod]]
    factors: ClassVar[tuple[str, ...]]
    numbers: ClassVar[Mapping[str, tuple[str, int]]] = _NUMBERS

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return a factor as it is."""
        module, _, leaf = name.rpartition(".")
        return (name, tensor) if module and leaf in self.factors else None

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return the numbers."""
        return {theirs: getattr(method, ours) for ours, (theirs, _) in self.numbers.items()}

    def differs(self, method: LayerMethod, view: ModuleView) -> str | None:
        """Return that PEFT does not know GPT-2's ``Conv1D`` either, or pads otherwise."""
        if isinstance(view, Conv1DView):
            return f"PEFT's {self.title} knows no layers of GPT-2's Conv1D"
        if isinstance(view, ConvolutionView):
            return pads_otherwise(self.title, view)
        return super().differs(method, view)

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        """Raise a DeltafitError if layers have ranks or alphas of their own."""
        given = [name for name in _BY_LAYER if config.get(name)]
        if given:
            raise DeltafitError(
                f"{folder}/adapter_config.json: {' and '.join(given)} of a {self.title} adapter "
                "have no place here, where all layers have one rank and one alpha."
            )

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return the method with the configuration's numbers.

        Raises:
            DeltafitError: one is out of its range.
        """
        values: dict[str, Any] = {
            ours: config.get(theirs, default) for ours, (theirs, default) in self.numbers.items()
        }
        try:
            return self.kind(target_modules=expression_for(names_of(layers)), **values)
        except UsageError as error:
            raise DeltafitError(f"{folder}/adapter_config.json: {error}") from None


class LoHaFormat(LyCORISFormat):
    """``hada_w1_a`` and its like."""

    peft_type: ClassVar[str] = "LOHA"
    title: ClassVar[str] = "LoHa"
    method: ClassVar[type[Method] | None] = LoHa
    prefix: ClassVar[str] = "hada_"
    kind: ClassVar[type[DeltaMethod]] = LoHa
    factors: ClassVar[tuple[str, ...]] = tuple(NAMES)


class LoKrFormat(LyCORISFormat):
    """``lokr_w1``, and ``lokr_w2`` or ``lokr_w2_a`` and ``lokr_w2_b``.

    The first matrix in two factors (``decompose_both`` at a small rank) is a variant that has no
    place here. Of a convolution over two dimensions ``lokr_w2`` is kernels; over one, PEFT
    multiplies by a whole ``lokr_w2`` in another order.
    """

    peft_type: ClassVar[str] = "LOKR"
    title: ClassVar[str] = "LoKr"
    method: ClassVar[type[Method] | None] = LoKr
    prefix: ClassVar[str] = "lokr_"
    understood: ClassVar[frozenset[str]] = _UNDERSTOOD | {
        *("decompose_both", "decompose_factor", "rank_dropout_scale"),
    }
    kind: ClassVar[type[DeltaMethod]] = LoKr
    factors: ClassVar[tuple[str, ...]] = (FIRST, SECOND, LEFT, RIGHT)
    numbers: ClassVar[Mapping[str, tuple[str, int]]] = _NUMBERS | {
        "decompose_factor": ("decompose_factor", -1)
    }

    def to_peft(
        self, model: nn.Module, method: Method, name: str, tensor: Tensor
    ) -> tuple[str, Tensor]:
        """Return the name, and kernels of a whole second matrix."""
        module, _, leaf = name.rpartition(".")
        view = view_of(model.get_submodule(module))
        kernels = leaf == SECOND and isinstance(view, ConvolutionView) and view.dimensions == 2
        return name, view.to_parameter(tensor) if kernels else tensor

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return a factor as it is; kernels become rows."""
        found = super().from_peft(name, tensor)
        return found and (found[0], kernels_as_rows(found[1]))

    def differs(self, method: LayerMethod, view: ModuleView) -> str | None:
        """Return that a product is of another order, or what LyCORIS's types have in common."""
        assert isinstance(method, LoKr)
        if isinstance(view, ConvolutionView) and view.dimensions == 1 and method.is_whole(view):
            return (
                f"PEFT's {self.title} of a Conv1d multiplies by a whole second matrix in an order "
                "of its own, in which Δ is no Kronecker product"
            )
        return super().differs(method, view)
