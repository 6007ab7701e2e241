"""Tied parameters: one tensor that stands in several places and so has several names."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from deltafit.adapters.model import base_parameters
from deltafit.errors import DeltafitError


def first_names(model: nn.Module) -> dict[str, str]:
    """Return every name of every base parameter → its name in ``base_parameters``."""
    first = {id(parameter): name for name, parameter in base_parameters(model).items()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if id(parameter) in first}


def under_first_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name with a tied parameter's under its first name alone.

    Raises:
        DeltafitError: two names of one parameter are given different values.
    """
    first = first_names(model)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = result.setdefault(first.get(name, name), tensor)
        if known is not tensor and not torch.equal(known, tensor):
            raise DeltafitError(
                f"{first[name]!r} and {_other_name(first, name)!r} are one tied parameter of this "
                f"model, and the adapter has other values for each. {_untie(name)}"
            )
    return result


def refuse_untied(model: nn.Module, names: Collection[str]) -> None:
    """Raise a DeltafitError if only some of a tied parameter's names are among ``names``.

    PEFT trains a copy of the module, and leaves the other places with the base's values.
    """
    first = first_names(model)
    given = {first[name]: name for name in names if name in first}
    for name, parameter in first.items():
        if parameter in given and name not in names:
            raise DeltafitError(
                f"{given[parameter]!r} and {name!r} are one tied parameter of this model, and the "
                f"adapter has values for the former alone: PEFT untied the two. {_untie(name)}"
            )


def refuse_partly(model: nn.Module, names: Collection[str]) -> None:
    """Raise a DeltafitError if only some of a tied parameter's names are to be trained."""
    first = first_names(model)
    given = {first[name]: name for name in names if name in first}
    for name, parameter in first.items():
        if parameter in given and name not in names:
            raise DeltafitError(
                f"{given[parameter]!r} and {name!r} are one tied parameter of this model, and the "
                "former alone is chosen: training it would change the latter too. Choose both, "
                f"neither, or make them two. {_untie(name)}"
            )


def _other_name(first: Mapping[str, str], name: str) -> str:
    """Return a name of the same parameter that is not its first."""
    return next(n for n, f in first.items() if f == first[name] != n)


def _untie(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return (
        f"Untie them first: model.{module}.{leaf} = nn.Parameter(model.{module}.{leaf}"
        ".detach().clone())."
    )
