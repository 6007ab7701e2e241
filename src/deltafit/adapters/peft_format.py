"""The file format of Hugging Face PEFT: its names for tensors, its ``adapter_config.json``.

Only LoRA has a place in it here; replacements (full, head, last block) have none.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import Conv1DView, view_of
from deltafit.adapters.model import base_parameters
from deltafit.adapters.structure import within
from deltafit.errors import DeltafitError
from deltafit.methods import LoRA

Value = TypeVar("Value", int, float)
PREFIX = "base_model.model."
_LAYER_KEY = re.compile(r"(.+)\.(?:(lora_A|lora_B)\.weight|lora_embedding_(A|B))")
_BASE_KEY = re.compile(r"(.+)\.base_layer(\.weight|\.bias)")
# Keys that say nothing about the computation, or that are read below.
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type",
    "peft_version", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Starting points that change the frozen weights, so that the base is no longer the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings with which the adapter computes something other than W·x + s·B·A·x.
_OTHER_FORMULA = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens",
    "layer_replication", "target_parameters", "trainable_token_indices", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip


@dataclass(frozen=True)
class PeftAdapter:
    """What a PEFT folder holds, in this package's terms.

    Attributes:
        method: the method, with exact module names as its targets.
        tensors: ``<module>.lora_A`` and the like, and replaced parameters by their names.
        replaced: names of the parameters stored whole.
        base: parameters of the base that PEFT stored too (those of adapted embeddings).
        notes: sentences about settings that were not understood.
    """

    method: LoRA
    tensors: dict[str, Tensor]
    replaced: tuple[str, ...]
    base: dict[str, Tensor]
    notes: tuple[str, ...]


def to_peft_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], targets: Collection[str]
) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's names."""
    lookup = {target: view_of(model.get_submodule(target)).lookup for target in targets}
    result = {}
    for name, tensor in tensors.items():
        module_name, _, leaf = name.rpartition(".")
        if module_name not in lookup:
            key = name
        elif lookup[module_name]:
            key = f"{module_name}.{leaf.replace('lora_', 'lora_embedding_')}"
        else:
            key = f"{module_name}.{leaf}.weight"
        result[PREFIX + key] = tensor
    return result


def our_name(key: str) -> str:
    """Return our name for a tensor of PEFT's: ``<module>.lora_A``, or a parameter's own name."""
    name = key.removeprefix(PREFIX)
    match = _LAYER_KEY.fullmatch(name)
    return f"{match[1]}.{match[2] or f'lora_{match[3]}'}" if match else name


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


def whole_modules(model: nn.Module, parameters: Sequence[str]) -> list[str]:
    """Return the highest modules that hold just the given parameters.

    Raises:
        DeltafitError: a parameter's module holds others too, which PEFT cannot express.
    """
    others = set(base_parameters(model)) - set(parameters)
    modules: list[str] = []
    for parameter in parameters:
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


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> PeftAdapter:
    """Read what PEFT wrote.

    Raises:
        DeltafitError: it is not LoRA, changes its base at the start, or holds a tensor that has
            no place here; the sentence names it.
    """
    _check_config(config, folder)
    ours: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    replaced: list[str] = []
    base: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = our_name(key)
        if name != key.removeprefix(PREFIX):
            module_name, _, leaf = name.rpartition(".")
            ours[name] = tensor
            ranks[module_name] = tensor.shape[0 if leaf == "lora_A" else 1]
        elif stored_base := _BASE_KEY.fullmatch(name):
            base[stored_base[1] + stored_base[2]] = tensor
        elif any(segment.startswith("lora_") for segment in name.split(".")):
            raise DeltafitError(
                f"{folder}: the tensor {key!r} belongs to a variant of LoRA that cannot be loaded "
                "here (such as DoRA, or a bias of B)."
            )
        else:
            ours[name] = tensor
            replaced.append(name)
    rank = int(config.get("r", 8))
    alpha = float(config.get("lora_alpha", 8))
    alphas = {
        module: float(_by_pattern(config.get("alpha_pattern") or {}, module, alpha))
        for module in ranks
    }
    method = LoRA(
        rank=rank,
        alpha=alpha,
        dropout=float(config.get("lora_dropout", 0.0)),
        scaling="alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r",
        target_modules=tuple(ranks),
        rank_pattern=_pattern(ranks, rank),
        alpha_pattern=_pattern(alphas, alpha),
    )
    return PeftAdapter(method, ours, tuple(replaced), base, _notes(config))


def _pattern(values: Mapping[str, Value], default: Value) -> tuple[tuple[str, Value], ...]:
    """Return the values that are not the default; all of them if names are ends of others."""
    other = {name: value for name, value in values.items() if value != default}
    if any(name.endswith(f".{end}") for end in other for name in values):
        other = dict(sorted(values.items(), key=lambda item: -len(item[0])))
    return tuple(other.items())


def _by_pattern(pattern: Mapping[str, Any], module_name: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of the name, as PEFT reads it."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module_name):
            return value
    return default


def _check_config(config: Any, folder: Path) -> None:
    if not isinstance(config, dict):
        raise DeltafitError(f"{folder}/adapter_config.json holds no JSON object.")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise DeltafitError(
            f"{folder}/adapter_config.json: peft_type is {kind!r}; only LORA can be loaded here."
        )
    variant = next((key for key in _OTHER_FORMULA if config.get(key)), None)
    if variant is not None:
        raise DeltafitError(
            f"{folder}/adapter_config.json sets {variant} to {config[variant]!r}, a variant of "
            "LoRA that cannot be loaded here."
        )
    if config.get("bias", "none") != "none":
        raise DeltafitError(
            f"{folder}/adapter_config.json: bias is {config['bias']!r}; only 'none' can be loaded."
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise DeltafitError(
            f"{folder}/adapter_config.json: init_lora_weights is {start!r}, which changed the base "
            "when training began; convert the adapter to plain LoRA first (PEFT: save_pretrained "
            "with path_initial_model_for_weight_conversion)."
        )


def _notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"adapter_config.json sets {key!r} to {value!r}, which is not known here and was ignored."
        for key, value in config.items()
        if key not in _UNDERSTOOD
        and value not in (None, False, "none", {}, [], "")
        and key not in ("corda_config", "eva_config", "megatron_core", "qalora_group_size")
    )


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return half-precision tensors as float32, in which adapters are kept; others as they are."""
    half = (torch.float16, torch.bfloat16)
    return {n: t.float() if t.dtype in half else t for n, t in tensors.items()}
