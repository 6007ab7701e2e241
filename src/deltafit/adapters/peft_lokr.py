"""PEFT's LoKr files: written from ours, and read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.peft_format import PeftFormat, expression_for, names_of
from deltafit.adapters.peft_loha import UNDERSTOOD, are_linear, refuse_by_layer
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import LoKr, Method
from deltafit.methods.lokr import FIRST, LEFT, RIGHT, SECOND

_LAYER_KEY = re.compile(rf"(.+)\.({'|'.join((FIRST, SECOND, LEFT, RIGHT))})")


class LoKrFormat(PeftFormat):
    """``lokr_w1``, and ``lokr_w2`` or ``lokr_w2_a`` and ``lokr_w2_b``, in our shapes.

    The first matrix in two factors (``decompose_both`` at a small rank) is a variant that has no
    place here.
    """

    peft_type: ClassVar[str] = "LOKR"
    title: ClassVar[str] = "LoKr"
    method: ClassVar[type[Method] | None] = LoKr
    prefix: ClassVar[str] = "lokr_"
    lookups: ClassVar[bool] = False
    understood: ClassVar[frozenset[str]] = UNDERSTOOD | {
        *("decompose_both", "decompose_factor", "rank_dropout_scale"),
    }

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return a factor as it is."""
        return (name, tensor) if _LAYER_KEY.fullmatch(name) else None

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return rank, alpha and what the sides are divided by."""
        assert isinstance(method, LoKr)
        own = {"r": method.rank, "alpha": method.alpha}
        return own | {"decompose_factor": method.decompose_factor}

    def holds(self, model: nn.Module, method: Method, targets: Sequence[str]) -> bool:
        """Return whether PEFT has it for these modules: not for GPT-2's ``Conv1D`` either."""
        return are_linear(model, targets)

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        """Raise a DeltafitError if layers have ranks or alphas of their own."""
        refuse_by_layer(config, self.title, folder)

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return LoKr with the configuration's numbers.

        Raises:
            DeltafitError: one is out of its range.
        """
        try:
            return LoKr(
                target_modules=expression_for(names_of(layers)),
                rank=config.get("r", 8),
                alpha=config.get("alpha", 8),
                decompose_factor=config.get("decompose_factor", -1),
            )
        except UsageError as error:
            raise DeltafitError(f"{folder}/adapter_config.json: {error}") from None
