"""PEFT's LayerNorm tuning: copies of whole norms, which have a place of their own in its files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.parts import Parts
from deltafit.adapters.peft_format import PeftFormat, expression_for, names_of
from deltafit.methods import Method, Modules, Norms

_COPY = "ln_tuning_layers"  # what PEFT calls the copy of a norm in its place
_COPY_KEY = re.compile(rf"(.+)\.{_COPY}(\..+)")


class NormsFormat(PeftFormat):
    """``ln_tuning_layers.weight`` and ``.bias``; PEFT copies any layer so, and not norms alone."""

    peft_type: ClassVar[str] = "LN_TUNING"
    title: ClassVar[str] = "LayerNorm tuning"
    method: ClassVar[type[Method] | None] = Norms
    prefix: ClassVar[str] = _COPY
    lookups: ClassVar[bool] = True
    understood: ClassVar[frozenset[str]] = frozenset()

    def places(self, model: nn.Module, adapted: Sequence[str]) -> tuple[str, ...]:
        """Return the norms: no layer is adapted."""
        return names_of(Parts(model).norms())

    def to_peft(
        self, model: nn.Module, method: Method, name: str, tensor: Tensor
    ) -> tuple[str, Tensor]:
        """Return the name in the copy; the shape is the same."""
        module, _, leaf = name.rpartition(".")
        return f"{module}.{_COPY}.{leaf}", tensor

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return the parameter's own name."""
        match = _COPY_KEY.fullmatch(name)
        return (match[1] + match[2], tensor) if match else None

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return nothing: the modules that are copied say it all."""
        return {}

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return the method that trains just what PEFT copied."""
        return Modules(expression_for(names_of(layers)))
