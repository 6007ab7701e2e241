"""Tied parameters: one tensor that stands in several places and so has several names."""

from collections.abc import Collection, Iterator, Mapping

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
    for former, other in _halves(model, names):
        raise DeltafitError(
            f"{former!r} and {other!r} are one tied parameter of this model, and the adapter has "
            f"values for the former alone: PEFT untied the two. {_untie(other)}"
        )


def refuse_partly(model: nn.Module, names: Collection[str]) -> None:
    """Raise a DeltafitError if only some of a tied parameter's names are to be trained."""
    for former, other in _halves(model, names):
        raise DeltafitError(
            f"{former!r} and {other!r} are one tied parameter of this model, and the former alone "
            "is chosen: training it would change the latter too. Choose both, neither, or make "
            f"them two. {_untie(other)}"
        )


def _halves(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield one of ``names`` and another name of the same parameter that is not among them."""
    first = first_names(model)
    given = {first[name]: name for name in names if name in first}
    for name, parameter in first.items():
        if parameter in given and name not in names:
            yield given[parameter], name


def _other_name(first: Mapping[str, str], name: str) -> str:
    """Return a name of the same parameter that is not its first."""
    return next(n for n, f in first.items() if f == first[name] != n)


def _untie(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return (
        f"Untie them first: model.{module}.{leaf} = nn.Parameter(model.{module}.{leaf}"
        ".detach().clone())."
    )
