"""PEFT's (IA)³ files: written from ours, and read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.convolution import ConvolutionView
from deltafit.adapters.layers import view_of
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.peft_format import PeftFormat, expression_for, names_of
from deltafit.adapters.peft_writing import shortest_targets
from deltafit.errors import DeltafitError
from deltafit.methods import IA3, LayerMethod, Method
from deltafit.methods.ia3 import VECTOR

_LAYER_KEY = re.compile(rf"(.+)\.{VECTOR}")


class IA3Format(PeftFormat):
    """``ia3_l``, ``[outputs, 1]``, or ``[1, inputs]`` where those are scaled.

    Of a Conv2d it is ``[1, channels, 1, 1]``, of what goes out or comes in.
    """

    peft_type: ClassVar[str] = "IA3"
    title: ClassVar[str] = "(IA)³"
    method: ClassVar[type[Method] | None] = IA3
    prefix: ClassVar[str] = "ia3_"
    lookups: ClassVar[bool] = False
    understood: ClassVar[frozenset[str]] = frozenset({"feedforward_modules", "init_ia3_weights"})

    def to_peft(
        self, model: nn.Module, method: Method, name: str, tensor: Tensor
    ) -> tuple[str, Tensor]:
        """Return the vector as a row or a column; of a convolution as what multiplies a batch."""
        assert isinstance(method, IA3)
        module = name.rpartition(".")[0]
        view = view_of(model.get_submodule(module))
        if view.convolution:
            return name, view.by_feature(tensor).unsqueeze(0)
        return name, tensor.unsqueeze(0 if method.for_module(module).scales_inputs else 1)

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return the row or column as a vector."""
        return (name, tensor.flatten()) if _LAYER_KEY.fullmatch(name) else None

    def differs(self, method: LayerMethod, view: ModuleView) -> str | None:
        """Return that PEFT knows no convolutions over one dimension."""
        if isinstance(view, ConvolutionView) and view.dimensions == 1:
            return f"PEFT's {self.title} knows no Conv1d"
        return super().differs(method, view)

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return which modules are scaled at their inputs."""
        assert isinstance(method, IA3)
        scaled = [t for t in targets if method.for_module(t).scales_inputs]
        # PEFT takes every module whose name ends so, within a segment too.
        ends = sorted({target.rpartition(".")[2] for target in scaled})
        found = [target for target in targets if target.endswith(tuple(ends))]
        short = set(ends) <= set(shortest_targets(model, targets)) and found == scaled
        return {"feedforward_modules": ends if short else "|".join(map(re.escape, scaled))}

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return (IA)³ with the modules that the configuration names.

        Raises:
            DeltafitError: the configuration does not say which are scaled at their inputs, or the
                tensors say otherwise.
        """
        given = config.get("feedforward_modules")
        modules = names_of(layers)
        if isinstance(given, str):
            scaled = [module for module in modules if _fullmatch(given, module, folder)]
        elif isinstance(given, list) and all(isinstance(name, str) for name in given):
            scaled = [module for module in modules if module.endswith(tuple(given))]
        else:
            raise DeltafitError(
                f"{folder}/adapter_config.json: feedforward_modules is {given!r} and neither a "
                "list of names nor an expression, so it does not say which inputs are scaled."
            )
        for name, tensor in layers.items():
            at_inputs = name.rpartition(".")[0] in scaled
            of_convolution = tensor.ndim == 4 and tensor.numel() == tensor.shape[1]
            if not of_convolution and (
                tensor.ndim != 2 or tensor.shape[0 if at_inputs else 1] != 1
            ):
                wanted = "[1, inputs]" if at_inputs else "[outputs, 1]"
                raise DeltafitError(
                    f"{folder}: the tensor {name!r} has shape {list(tensor.shape)} and not "
                    f"{wanted}, as feedforward_modules in adapter_config.json would have it (nor "
                    "[1, channels, 1, 1], as a Conv2d's)."
                )
        return IA3(
            target_modules=expression_for(modules),
            feedforward_modules=expression_for(scaled) if scaled else (),
        )


def _fullmatch(expression: str, module: str, folder: Path) -> bool:
    try:
        return re.fullmatch(expression, module) is not None
    except re.error as error:
        raise DeltafitError(
            f"{folder}/adapter_config.json: feedforward_modules is {expression!r}, which is no "
            f"regular expression: {error}."
        ) from None
