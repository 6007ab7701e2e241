"""PEFT's LayerNorm tuning: copies of whole norms, which have a place of their own in its files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltafit.adapters.parts import Parts
from deltafit.adapters.peft_format import NORM_COPY, our_name, whole_modules
from deltafit.errors import DeltafitError
from deltafit.methods import Modules

NORMS_TYPE = "LN_TUNING"


def to_peft_norms(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    base_name: str | None,
    task_type: str | None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``Norms`` trained by the names of PEFT's copies, and PEFT's configuration.

    Args:
        model: the adapted model.
        tensors: parameters trained whole, by their names.
        base_name: what PEFT should load as the base.
        task_type: PEFT's task type.

    Raises:
        DeltafitError: a parameter of the head is trained and its whole module is not.
    """
    norms = set(Parts(model).norms())
    named = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        named[f"{module}.{NORM_COPY}.{leaf}" if name in norms else name] = tensor
    config: dict[str, Any] = {
        "peft_type": NORMS_TYPE,
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[0] for name in norms}),
    }
    if whole := whole_modules(model, tensors.keys() - norms):
        config["modules_to_save"] = whole
    return named, config


def from_peft_norms(
    tensors: Mapping[str, Tensor], folder: Path
) -> tuple[Modules, dict[str, Tensor]]:
    """Return the method that trains just what PEFT copied, and the tensors by our names.

    Raises:
        DeltafitError: nothing was copied.
    """
    copied = {our_name(key).rpartition(".")[0]: None for key in tensors if _is_copy(key)}
    if not copied:
        raise DeltafitError(
            f"{folder} holds no tensor of LayerNorm tuning, so there is no adapter to load."
        )
    method = Modules("re:" + "|".join(map(re.escape, copied)))
    return method, {our_name(key): tensor for key, tensor in tensors.items()}


def _is_copy(key: str) -> bool:
    return f".{NORM_COPY}." in key
