"""PEFT's LoHa files: written from ours, and read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.layers import view_of
from deltafit.adapters.peft_format import PeftFormat, expression_for, names_of
from deltafit.adapters.views import Conv1DView
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import LoHa, Method
from deltafit.methods.loha import NAMES

_LAYER_KEY = re.compile(rf"(.+)\.({'|'.join(NAMES)})")
# Settings with which layers differ: no place for them here.
_BY_LAYER = ("rank_pattern", "alpha_pattern")
UNDERSTOOD = frozenset(
    # Dropout of rows of Δ and of whole modules is of training alone.
    {
        *("r", "alpha", "init_weights", "rank_dropout", "module_dropout", *_BY_LAYER),
        "use_effective_conv2d",
    }
)
"""Keys that LyCORIS's types have in common."""


def refuse_by_layer(config: Mapping[str, Any], title: str, folder: Path) -> None:
    """Raise a DeltafitError if layers have ranks or alphas of their own."""
    given = [name for name in _BY_LAYER if config.get(name)]
    if given:
        raise DeltafitError(
            f"{folder}/adapter_config.json: {' and '.join(given)} of a {title} adapter have no "
            "place here, where all layers have one rank and one alpha."
        )


def are_linear(model: nn.Module, targets: Sequence[str]) -> bool:
    """Return whether no target is an embedding or GPT-2's ``Conv1D``, which LyCORIS's lack."""
    views = [view_of(model.get_submodule(target)) for target in targets]
    return not any(view.lookup or isinstance(view, Conv1DView) for view in views)


class LoHaFormat(PeftFormat):
    """``hada_w1_a`` and its like, in our shapes."""

    peft_type: ClassVar[str] = "LOHA"
    title: ClassVar[str] = "LoHa"
    method: ClassVar[type[Method] | None] = LoHa
    prefix: ClassVar[str] = "hada_"
    lookups: ClassVar[bool] = False
    understood: ClassVar[frozenset[str]] = UNDERSTOOD

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return a factor as it is."""
        return (name, tensor) if _LAYER_KEY.fullmatch(name) else None

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return rank and alpha."""
        assert isinstance(method, LoHa)
        return {"r": method.rank, "alpha": method.alpha}

    def holds(self, model: nn.Module, method: Method, targets: Sequence[str]) -> bool:
        """Return whether PEFT has it for these modules: not for GPT-2's ``Conv1D`` either."""
        return are_linear(model, targets)

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        """Raise a DeltafitError if layers have ranks or alphas of their own."""
        refuse_by_layer(config, self.title, folder)

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return LoHa with the configuration's numbers.

        Raises:
            DeltafitError: one is out of its range.
        """
        values = {"rank": config.get("r", 8), "alpha": config.get("alpha", 8)}
        try:
            return LoHa(target_modules=expression_for(names_of(layers)), **values)
        except UsageError as error:
            raise DeltafitError(f"{folder}/adapter_config.json: {error}") from None
