"""PEFT's VeRA files: written from ours, and read.

PEFT draws A and B from ``projection_prng_key`` as we do, so they are stored only where they are
others than the key gives.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.peft_format import (
    PeftAdapter,
    PeftFormat,
    expression_for,
    names_of,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import LayerMethod, Method, VeRA

_LAYER_KEY = re.compile(r"(.+)\.vera_lambda_[bd]")
# PEFT's names for settings, its defaults, and our names.
_SETTINGS = {
    "r": (256, "rank"),
    "d_initial": (0.1, "d_initial"),
    "vera_dropout": (0.0, "dropout"),
    "projection_prng_key": (0, "projection_prng_key"),
}


class VeRAFormat(PeftFormat):
    """``vera_lambda_b`` and ``vera_lambda_d``; ``vera_A`` and ``vera_B`` once, of all layers."""

    peft_type: ClassVar[str] = "VERA"
    title: ClassVar[str] = "VeRA"
    method: ClassVar[type[Method] | None] = VeRA
    prefix: ClassVar[str] = "vera_"
    lookups: ClassVar[bool] = False
    understood: ClassVar[frozenset[str]] = frozenset(
        {*_SETTINGS, "bias", "init_weights", "save_projection"}
    )

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return a vector as it is."""
        return (name, tensor) if _LAYER_KEY.fullmatch(name) else None

    def differs(self, method: LayerMethod, view: ModuleView) -> str | None:
        """Return that PEFT knows no convolutions."""
        if view.convolution:
            return f"PEFT's {self.title} knows no convolutions"
        return super().differs(method, view)

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return rank and key, and whether A and B are stored."""
        values = {key: getattr(method, name) for key, (_, name) in _SETTINGS.items()}
        return {**values, "save_projection": shared, "bias": "none"}

    def read(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
    ) -> PeftAdapter:
        """Read what PEFT wrote; A and B only where it says that they are stored.

        Raises:
            DeltafitError: as ``PeftFormat.read``, or it says so and they are not.
        """
        found = super().read(config, tensors, folder)
        if not config.get("save_projection", True):
            return replace(found, shared={})
        if set(found.shared) != {"vera_A", "vera_B"}:
            raise DeltafitError(
                f"{folder}/adapter_config.json says that the projections are saved "
                "(save_projection), and the tensors hold no vera_A and vera_B. Restore a copy."
            )
        return found

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return VeRA with the configuration's numbers.

        Raises:
            DeltafitError: one is out of its range.
        """
        values = {name: config.get(key, default) for key, (default, name) in _SETTINGS.items()}
        try:
            return VeRA(target_modules=expression_for(names_of(layers)), **values)
        except UsageError as error:
            raise DeltafitError(f"{folder}/adapter_config.json: {error}") from None
