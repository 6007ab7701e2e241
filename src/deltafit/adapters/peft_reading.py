"""Reading what Hugging Face PEFT wrote: its configuration checked, its tensors under our names."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from deltafit.adapters.peft_adalora import as_lora
from deltafit.adapters.peft_format import is_of_layer, our_name
from deltafit.adapters.peft_norms import NORMS_TYPE, from_peft_norms
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LoRA, Method
from deltafit.methods.dora import MAGNITUDE

Value = TypeVar("Value", int, float)
_BASE_KEY = re.compile(r"(.+)\.base_layer(\.weight|\.bias)")
# Keys that say nothing about the computation, or that are read below.
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type",
    "peft_version", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_dora",
    "use_rslora",
}  # fmt: skip
# Starting points that change the frozen weights, so that the base is no longer the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings with which the adapter computes something other than W·x + s·B·A·x.
_OTHER_FORMULA = (
    "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens",
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

    method: Method
    tensors: dict[str, Tensor]
    replaced: tuple[str, ...]
    base: dict[str, Tensor]
    notes: tuple[str, ...]


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> PeftAdapter:
    """Read what PEFT wrote.

    Raises:
        DeltafitError: it is neither LoRA nor LayerNorm tuning, changes its base at the start, or
            holds a setting or tensor that has no place here; the sentence names it.
    """
    if isinstance(config, dict) and config.get("peft_type") == NORMS_TYPE:
        trained, whole = from_peft_norms(tensors, folder)
        return PeftAdapter(trained, whole, tuple(whole), {}, ())
    if isinstance(config, dict) and config.get("peft_type") == "ADALORA":
        config, tensors = as_lora(config, tensors, folder)
    _check_config(config, folder)
    _check_numbers(config, folder)
    ours = {our_name(key): tensor for key, tensor in tensors.items()}
    base = {}
    replaced = []
    hidden = () if config.get("use_dora") else (MAGNITUDE,)
    layers = {
        our_name(key): tensor
        for key, tensor in tensors.items()
        if is_of_layer(key) and not key.endswith(hidden)
    }
    for name in [name for name in ours if name not in layers]:
        if stored_base := _BASE_KEY.fullmatch(name):
            base[stored_base[1] + stored_base[2]] = ours.pop(name)
        elif any(segment.startswith("lora_") for segment in name.split(".")):
            raise DeltafitError(
                f"{folder}: the tensor {name!r} belongs to a variant of LoRA that cannot be loaded "
                "here (such as one with a bias of B)."
            )
        else:
            replaced.append(name)
    method = _method(config, _ranks(layers, folder))
    return PeftAdapter(method, ours, tuple(replaced), base, _notes(config))


def _ranks(layers: Mapping[str, Tensor], folder: Path) -> dict[str, int]:
    """Return the rank of each adapted module, by its full name."""
    factors = {name: t for name, t in layers.items() if not name.endswith(f".{MAGNITUDE}")}
    for name, tensor in factors.items():
        if tensor.ndim != 2:
            raise DeltafitError(
                f"{folder}: the tensor {name!r} has shape {list(tensor.shape)}; only adapters of "
                "linear layers and embeddings, which are matrices, can be loaded here."
            )
    if not factors:
        raise DeltafitError(f"{folder} holds no tensor of LoRA, so there is no adapter to load.")
    return {
        name.rpartition(".")[0]: tensor.shape[0 if name.endswith("lora_A") else 1]
        for name, tensor in factors.items()
    }


def _method(config: Mapping[str, Any], ranks: Mapping[str, int]) -> LoRA:
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    by_pattern = config.get("alpha_pattern") or {}
    alphas = {module: _by_pattern(by_pattern, module, alpha) for module in ranks}
    return (DoRA if config.get("use_dora") else LoRA)(
        rank=rank,
        alpha=alpha,
        dropout=config.get("lora_dropout", 0.0),
        scaling="alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r",
        # As an expression: a name would match every module whose name it ends.
        target_modules="re:" + "|".join(map(re.escape, ranks)),
        rank_pattern=_pattern(ranks, rank),
        alpha_pattern=_pattern(alphas, alpha),
    )


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
            f"{folder}/adapter_config.json: peft_type is {kind!r}; only LORA, ADALORA and "
            f"{NORMS_TYPE} can be loaded here."
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


def _check_numbers(config: Mapping[str, Any], folder: Path) -> None:
    rank, dropout = config.get("r", 8), config.get("lora_dropout", 0.0)
    pattern = config.get("alpha_pattern") or {}
    problems = []
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r} and not a whole number of at least 1")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout is {dropout!r} and not a number from 0 to below 1")
    alphas = {"lora_alpha": config.get("lora_alpha", 8)}
    if isinstance(pattern, dict):
        alphas |= {f"alpha_pattern of {key!r}": value for key, value in pattern.items()}
        problems += [
            f"alpha_pattern has the key {key!r}, which is no regular expression"
            for key in pattern
            if not _is_expression(key)
        ]
    else:
        problems.append(f"alpha_pattern is {pattern!r} and not an object of names and numbers")
    problems += [
        f"{key} is {alpha!r} and not a finite number above 0"
        for key, alpha in alphas.items()
        if not _is_number(alpha) or not 0 < alpha < math.inf
    ]
    if problems:
        raise DeltafitError(f"{folder}/adapter_config.json: {'; '.join(problems)}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"adapter_config.json sets {key!r} to {value!r}, which is not known here and was ignored."
        for key, value in config.items()
        if key not in _UNDERSTOOD
        and value not in (None, False, "none", {}, [], "")
        and key not in ("corda_config", "eva_config", "megatron_core", "qalora_group_size")
    )
