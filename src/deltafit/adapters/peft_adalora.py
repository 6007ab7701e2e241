"""PEFT's AdaLoRA files: what they compute is LoRA with a rank for each module."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from deltafit.adapters.peft_format import PREFIX, PeftAdapter
from deltafit.adapters.peft_lora import LoRAFormat
from deltafit.errors import DeltafitError
from deltafit.methods import Method
from deltafit.methods.checks import is_number

_KEY = re.compile(r"(.+)\.lora_([ABE])")
_SHARED = (
    "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_dropout",
    "modules_to_save", "target_modules", "task_type",
)  # fmt: skip


class AdaLoRAFormat(LoRAFormat):
    """``lora_A``, ``lora_B`` and ``lora_E``; ours is written as LoRA, which computes the same."""

    peft_type: ClassVar[str] = "ADALORA"
    method: ClassVar[type[Method] | None] = None

    def read(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
    ) -> PeftAdapter:
        """Read the LoRA adapter with the same Δ."""
        return super().read(*as_lora(config, tensors, folder), folder)


def as_lora(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of the LoRA adapter with the same Δ.

    PEFT computes α/(init_r + 10⁻⁵)·B·(E·A), whatever rank a module has left; without an α, init_r
    stands for it.

    Raises:
        DeltafitError: a number is none, or a module has not all three tensors.
    """
    rank, alpha = config.get("init_r", 12), config.get("lora_alpha", 8)
    if not (is_number(rank) and is_number(alpha)):
        raise DeltafitError(
            f"{folder}/adapter_config.json: init_r is {rank!r} and lora_alpha {alpha!r}; both must "
            "be numbers."
        )
    layers: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match:
            layers.setdefault(match[1], {})[match[2]] = tensor
        else:
            rest[key] = tensor
    for module, own in layers.items():
        if set(own) != set("ABE"):
            raise DeltafitError(
                f"{folder}: {module.removeprefix(PREFIX)!r} has the tensors "
                f"{', '.join(f'lora_{n}' for n in sorted(own))}; AdaLoRA has A, B and E."
            )
    kept = {module: own for module, own in layers.items() if len(own["E"])}
    scaling = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    for module, own in kept.items():
        rest[f"{module}.lora_A.weight"] = own["E"] * own["A"]
        rest[f"{module}.lora_B.weight"] = own["B"]
    ranks = {f"^{re.escape(m.removeprefix(PREFIX))}": len(own["E"]) for m, own in kept.items()}
    lora = {
        **{key: config[key] for key in _SHARED if key in config},
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": scaling,
        "alpha_pattern": {name: scaling * own for name, own in ranks.items()},
    }
    return lora, rest
