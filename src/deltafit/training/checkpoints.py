"""Checkpoints: safetensors for tensors, the optimiser included; JSON for the rest; no pickles.

A checkpoint is a folder ``step-00000123`` that appears in one rename. Resuming from it gives the
same parameters, bit for bit, as never having stopped (on a CPU with the same thread count).
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.errors import DeltafitError
from deltafit.files import (
    read_json,
    read_tensors,
    write_folder_atomically,
    write_json_atomically,
    write_tensors_atomically,
)

_BEST = "best.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: see ``save_checkpoint``."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    trainable: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, Any],
    of_method: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint, then drop the older ones.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: optimiser steps applied so far.
        trainable: parameter name → parameter.
        optimiser: its state is stored under the parameters' names.
        state: JSON values: position, history, best figure.
        of_method: what the method remembers besides its parameters.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        tensors[f"parameter/{name}"] = parameter
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(value)
    tensors |= {f"method/{name}": tensor for name, tensor in of_method.items()}
    with write_folder_atomically(folder / f"step-{step:08d}") as temporary:
        write_tensors_atomically(temporary / "tensors.safetensors", tensors)
        write_json_atomically(temporary / "state.json", {"step": step, **state})
    # What a killed process left half written goes too; .tmp… is safetensors' own.
    leftovers = (path for name in (".*.part", ".*.old", ".tmp*") for path in folder.glob(name))
    for stale in (*_steps(folder)[:-1], *leftovers):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that can be read; None where there is none.

    Raises:
        DeltafitError: there are checkpoints, and all of them are damaged.
    """
    problems: list[DeltafitError] = []
    for path in reversed(_steps(folder)):
        try:
            return Checkpoint(
                read_tensors(path / "tensors.safetensors"), read_json(path / "state.json")
            )
        except DeltafitError as error:
            problems.append(error)
    if problems:
        raise DeltafitError(
            f"No checkpoint in {folder} can be read. {problems[0]} Delete {folder} and resume to "
            "train from the beginning."
        ) from problems[0]
    return None


def latest_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that has one, without its tensors."""
    for path in reversed(_steps(folder)):
        with suppress(DeltafitError):
            state: dict[str, Any] = read_json(path / "state.json")
            return state
    return None


def restore(
    checkpoint: Checkpoint,
    trainable: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    of_method: Mapping[str, Tensor],
) -> None:
    """Put a checkpoint's values into the parameters, the optimiser and what the method remembers.

    Raises:
        DeltafitError: the checkpoint is of another model or method.
    """
    tensors = checkpoint.tensors
    wanted = {f"parameter/{name}": parameter.data for name, parameter in trainable.items()}
    wanted |= {f"method/{name}": tensor for name, tensor in of_method.items()}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise DeltafitError(
            f"The checkpoint has no tensor {missing[0]!r}: it is of another model or method."
        )
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimiser":
            entry, _, name = rest.partition("/")
            parameter = trainable[name]
            # AdamW keeps its step count on the CPU whatever the parameter's device. Its fused
            # kernel takes for granted that the rest lies in memory as the parameter does.
            place = torch.empty((), dtype=value.dtype) if entry == "step" else parameter.detach()
            optimiser.state[parameter][entry] = torch.empty_like(place, dtype=value.dtype).copy_(
                value
            )


def save_best(folder: Path, trainable: Mapping[str, nn.Parameter]) -> None:
    """Write the parameters of the best evaluation so far."""
    write_tensors_atomically(folder / _BEST, trainable)


def load_best(folder: Path, trainable: Mapping[str, nn.Parameter]) -> None:
    """Put the parameters of the best evaluation back."""
    tensors = read_tensors(folder / _BEST)
    for name, parameter in trainable.items():
        parameter.data.copy_(tensors[name])


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
