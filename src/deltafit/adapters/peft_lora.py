"""PEFT's LoRA files, DoRA's included: written from ours, and read."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from deltafit.adapters.convolution import ConvolutionView, kernels_as_rows
from deltafit.adapters.layers import view_of
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.peft_format import PeftFormat, expression_for
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LayerMethod, LoRA, Method
from deltafit.methods.checks import is_number
from deltafit.methods.dora import MAGNITUDE
from deltafit.methods.lora import longest_first

Value = TypeVar("Value", int, float)
_LAYER_KEY = re.compile(rf"(.+)\.(?:(lora_A|lora_B)\.weight|({MAGNITUDE})|lora_embedding_(A|B))")
# Starting points that change the frozen weights, so that the base is no longer the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings with which the adapter computes something other than W·x + s·B·A·x.
_OTHER_FORMULA = (
    "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens",
    "layer_replication", "target_parameters", "trainable_token_indices", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip


class LoRAFormat(PeftFormat):
    """``lora_A.weight`` and ``lora_B.weight``, of embeddings ``lora_embedding_A`` and ``_B``."""

    peft_type: ClassVar[str] = "LORA"
    title: ClassVar[str] = "LoRA"
    method: ClassVar[type[Method] | None] = LoRA
    prefix: ClassVar[str] = "lora_"
    lookups: ClassVar[bool] = True
    understood: ClassVar[frozenset[str]] = frozenset({
        "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "r",
        "rank_pattern", "use_dora", "use_rslora",
        # Of what was done before or beside training.
        "corda_config", "eva_config", "megatron_core", "qalora_group_size",
    })  # fmt: skip

    def to_peft(
        self, model: nn.Module, method: Method, name: str, tensor: Tensor
    ) -> tuple[str, Tensor]:
        """Return PEFT's name; the shapes are the same, but those of convolutions' kernels."""
        module, _, leaf = name.rpartition(".")
        view = view_of(model.get_submodule(module))
        if isinstance(view, ConvolutionView):
            kernels = {"lora_A": view.to_parameter, "lora_B": view.pointwise}
            in_its_shape = kernels.get(leaf, view.by_feature)(tensor)
            tensor = in_its_shape.unsqueeze(0) if leaf == MAGNITUDE else in_its_shape
        if leaf == MAGNITUDE:
            return name, tensor
        plain = leaf.replace("lora_", "lora_embedding_") if view.lookup else f"{leaf}.weight"
        return f"{module}.{plain}", tensor

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return our name for a factor or a magnitude; kernels become rows."""
        match = _LAYER_KEY.fullmatch(name)
        if match is None:
            return None
        leaf = match[2] or match[3] or f"lora_{match[4]}"
        ours = tensor.flatten() if leaf == MAGNITUDE else kernels_as_rows(tensor)
        return f"{match[1]}.{leaf}", ours

    def differs(self, method: LayerMethod, view: ModuleView) -> str | None:
        """Return what PEFT's convolution A has not of the layer, whose whole output it is for."""
        if not isinstance(view, ConvolutionView):
            return None
        if view.groups > 1:
            return (
                f"PEFT's {self.title} lets each output of a convolution with groups take the "
                "channels of all groups, which no change of its weight does"
            )
        if view.dilated:
            return (
                f"PEFT's {self.title} does not dilate its kernel as the convolution does (nor is "
                "an AdaLoRA of PEFT's told apart from it)"
            )
        return pads_otherwise(self.title, view)

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return ranks, alphas and dropout.

        PEFT scales by α/r or α/√r; scaling by α itself is written as α·r.
        """
        assert isinstance(method, LoRA)
        resolved = {target: method.for_module(target) for target in targets}
        alphas = {target: _their_alpha(own) for target, own in resolved.items()}
        alpha = _their_alpha(method)
        # PEFT reads the names as expressions for the end of a module's name; "^" makes them the
        # whole.
        ranks = {f"^{re.escape(t)}": m.rank for t, m in resolved.items() if m.rank != method.rank}
        other_alphas = {f"^{re.escape(t)}": a for t, a in alphas.items() if a != alpha}
        optional = {
            "rank_pattern": ranks,
            "alpha_pattern": other_alphas,
            "use_dora": isinstance(method, DoRA),
            "use_rslora": method.scaling == "alpha/sqrt(r)",
        }
        return {
            "r": method.rank,
            "lora_alpha": alpha,
            "lora_dropout": method.dropout,
            "bias": "none",
            **{key: value for key, value in optional.items() if value},
        }

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        """Refuse what changes its base at the start, computes another formula, or is no number."""
        super().check(config, folder)
        _check_config(config, folder)
        _check_numbers(config, folder)

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return LoRA or DoRA, with the rank that each module's factors have."""
        use_dora = config.get("use_dora")
        magnitudes = [name for name in layers if name.endswith(f".{MAGNITUDE}")]
        if magnitudes and not use_dora:
            raise self.variant(magnitudes[0], folder)
        ranks = _ranks({n: t for n, t in layers.items() if n not in magnitudes}, folder)
        rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
        by_pattern = config.get("alpha_pattern") or {}
        alphas = {module: _by_pattern(by_pattern, module, alpha) for module in ranks}
        return (DoRA if use_dora else LoRA)(
            rank=rank,
            alpha=alpha,
            dropout=config.get("lora_dropout", 0.0),
            scaling="alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r",
            target_modules=expression_for(ranks),
            rank_pattern=_pattern(ranks, rank),
            alpha_pattern=_pattern(alphas, alpha),
        )


def pads_otherwise(title: str, view: ConvolutionView) -> str | None:
    """Return that PEFT pads otherwise than a convolution, as a clause; None where it does not."""
    if view.padding_mode in (None, "zeros"):
        return None
    return f"PEFT's {title} pads with zeros where the convolution pads with {view.padding_mode!r}"


def _their_alpha(method: LoRA) -> float:
    return method.alpha * method.rank if method.scaling == "alpha" else method.alpha


def _ranks(factors: Mapping[str, Tensor], folder: Path) -> dict[str, int]:
    """Return the rank of each adapted module, by its full name."""
    for name, tensor in factors.items():
        if tensor.ndim not in (2, 3, 4):
            raise DeltafitError(
                f"{folder}: the tensor {name!r} has shape {list(tensor.shape)}; only adapters of "
                "linear layers, embeddings, and convolutions over one dimension or two can be "
                "loaded here."
            )
    return {
        name.rpartition(".")[0]: tensor.shape[0 if name.endswith("lora_A") else 1]
        for name, tensor in factors.items()
    }


def _pattern(values: Mapping[str, Value], default: Value) -> tuple[tuple[str, Value], ...]:
    """Return the values that are not the default; all of them if names are ends of others."""
    other = {name: value for name, value in values.items() if value != default}
    if any(name.endswith(f".{end}") for end in other for name in values):
        return longest_first(values)
    return tuple(other.items())


def _by_pattern(pattern: Mapping[str, Any], module_name: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of the name, as PEFT reads it."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module_name):
            return value
    return default


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    variant = next((key for key in _OTHER_FORMULA if config.get(key)), None)
    if variant is not None:
        raise DeltafitError(
            f"{folder}/adapter_config.json sets {variant} to {config[variant]!r}, a variant of "
            "LoRA that cannot be loaded here."
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
    if not is_number(dropout) or not 0 <= dropout < 1:
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
        if not is_number(alpha) or not 0 < alpha < math.inf
    ]
    if problems:
        raise DeltafitError(f"{folder}/adapter_config.json: {'; '.join(problems)}.")


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
