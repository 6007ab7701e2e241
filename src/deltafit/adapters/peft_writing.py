"""Writing what Hugging Face PEFT reads: an adapter's tensors by its names, its configuration.

PEFT trains a copy of each whole module, so a tied parameter is written under each of its names.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from deltafit.adapters.layers import view_of
from deltafit.adapters.peft_format import PREFIX, SHARED_PREFIX, PeftFormat
from deltafit.adapters.structure import within
from deltafit.adapters.tied import first_names
from deltafit.adapters.views import Conv1DView
from deltafit.errors import DeltafitError
from deltafit.methods import Method


def to_peft_tensors(
    form: PeftFormat | None,
    model: nn.Module,
    method: Method,
    tensors: Mapping[str, Tensor],
    adapted: Sequence[str],
) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's names, or under ours where it has no such type."""
    if form is None:
        return {PREFIX + name: tensor for name, tensor in tensors.items()}
    return form.written(model, method, tensors, adapted)


def to_peft_shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that layers share under PEFT's names."""
    return {SHARED_PREFIX + name: tensor for name, tensor in tensors.items()}


def tied_copies(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tied parameters under the names that ``tensors`` does not have."""
    return {
        name: tensors[first].clone()  # a file of tensors refuses shared memory
        for name, first in first_names(model).items()
        if first in tensors and name != first
    }


def to_peft_config(
    form: PeftFormat,
    model: nn.Module,
    method: Method,
    adapted: Sequence[str],
    replaced: Sequence[str],
    *,
    shared: bool,
    base_name: str | None,
    task_type: str | None,
) -> dict[str, Any]:
    """Return the fewest keys that make PEFT build the same adapter."""
    places = form.places(model, adapted)
    others = [name for name in replaced if name.rpartition(".")[0] not in places]
    optional = {
        "modules_to_save": whole_modules(model, others),
        "fan_in_fan_out": form.names_targets
        and any(isinstance(view_of(model.get_submodule(target)), Conv1DView) for target in adapted),
    }
    return {
        "peft_type": form.peft_type,
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        **({"target_modules": shortest_targets(model, places)} if form.names_targets else {}),
        **form.settings(model, method, places, shared),
        **{key: value for key, value in optional.items() if value},
    }


def shortest_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
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
