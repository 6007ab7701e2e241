"""The file format of Hugging Face PEFT: its names for tensors, its ``adapter_config.json``.

Only LoRA has a place in it here; replacements (full, head, last block) have none. PEFT trains a
copy of each whole module, so a tied parameter is written under each of its names.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from deltafit.adapters.layers import view_of
from deltafit.adapters.structure import within
from deltafit.adapters.tied import first_names
from deltafit.adapters.views import Conv1DView
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LoRA
from deltafit.methods.dora import MAGNITUDE

PREFIX = "base_model.model."
_LAYER_KEY = re.compile(rf"(.+)\.(?:(lora_A|lora_B)\.weight|({MAGNITUDE})|lora_embedding_(A|B))")


def to_peft_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], targets: Collection[str]
) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's names."""
    lookup = {target: view_of(model.get_submodule(target)).lookup for target in targets}
    result = {}
    for name, tensor in tensors.items():
        module_name, _, leaf = name.rpartition(".")
        if module_name not in lookup or leaf not in ("lora_A", "lora_B"):
            key = name  # PEFT's own name for a magnitude; others are of methods it has no file for
        elif lookup[module_name]:
            key = f"{module_name}.{leaf.replace('lora_', 'lora_embedding_')}"
        else:
            key = f"{module_name}.{leaf}.weight"
        result[PREFIX + key] = tensor
    return result


def tied_copies(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tied parameters under the names that ``tensors`` does not have."""
    return {
        name: tensors[first].clone()  # a file of tensors refuses shared memory
        for name, first in first_names(model).items()
        if first in tensors and name != first
    }


def our_name(key: str) -> str:
    """Return our name for a tensor of PEFT's: ``<module>.lora_A``, or a parameter's own name."""
    name = key.removeprefix(PREFIX)
    match = _LAYER_KEY.fullmatch(name)
    return f"{match[1]}.{match[2] or match[3] or f'lora_{match[4]}'}" if match else name


def is_of_layer(key: str) -> bool:
    """Return whether a tensor of PEFT's belongs to an adapted layer, and is no whole parameter."""
    return _LAYER_KEY.fullmatch(key.removeprefix(PREFIX)) is not None


def to_peft_config(
    model: nn.Module,
    method: LoRA,
    targets: Sequence[str],
    replaced: Sequence[str],
    *,
    base_name: str | None,
    task_type: str | None,
) -> dict[str, Any]:
    """Return the fewest keys that make PEFT build the same adapter.

    PEFT scales by α/r or α/√r; scaling by α itself is written as α·r.
    """
    resolved = {target: method.for_module(target) for target in targets}
    alphas = {
        target: m.alpha * m.rank if m.scaling == "alpha" else m.alpha
        for target, m in resolved.items()
    }
    alpha = method.alpha * method.rank if method.scaling == "alpha" else method.alpha
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": method.rank,
        "lora_alpha": alpha,
        "lora_dropout": method.dropout,
        "target_modules": _shortest_targets(model, targets),
        "bias": "none",
    }
    # PEFT reads the names as expressions for the end of a module's name; "^" makes them the whole.
    ranks = {f"^{re.escape(t)}": m.rank for t, m in resolved.items() if m.rank != method.rank}
    other_alphas = {f"^{re.escape(t)}": a for t, a in alphas.items() if a != alpha}
    optional = {
        "rank_pattern": ranks,
        "alpha_pattern": other_alphas,
        "modules_to_save": whole_modules(model, replaced),
        "use_dora": isinstance(method, DoRA),
        "use_rslora": method.scaling == "alpha/sqrt(r)",
        "fan_in_fan_out": any(
            isinstance(view_of(model.get_submodule(target)), Conv1DView) for target in targets
        ),
    }
    return config | {key: value for key, value in optional.items() if value}


def _shortest_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return last name segments where they match just the targets, else the full names."""
    leaves = sorted({target.rpartition(".")[2] for target in targets})
    matched = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves]
    return leaves if sorted(matched) == sorted(targets) else sorted(targets)


def whole_modules(model: nn.Module, parameters: Collection[str]) -> list[str]:
    """Return the highest modules that hold just the given parameters, under all of their names.

    Raises:
        DeltafitError: a parameter's module holds others too, which PEFT cannot express.
    """
    names = first_names(model)
    others = [name for name, first in names.items() if first not in parameters]
    modules: list[str] = []
    for parameter in (name for name, first in names.items() if first in parameters):
        parents = parameter.split(".")[:-1]
        candidates = (".".join(parents[:end]) for end in range(1, len(parents) + 1))
        whole = (c for c in candidates if not any(within(other, c) for other in others))
        holder = next(whole, None)
        if holder is None:
            raise DeltafitError(
                f"The parameter {parameter!r} is trained but its whole module is not; PEFT's "
                "format stores whole modules. Train the whole module."
            )
        if holder not in modules:
            modules.append(holder)
    return modules
