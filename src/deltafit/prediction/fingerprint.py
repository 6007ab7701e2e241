"""Which base an adapter belongs to: names, shapes and sampled values of every base tensor."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from deltafit.adapters import base_parameters
from deltafit.errors import DeltafitError

SAMPLES = 64


def fingerprint(model: nn.Module, exclude: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return, for every base tensor, its shape and a hash of values sampled evenly from it.

    Values are hashed as float32, so that storing the base in another precision and loading it
    in float32 counts as the change it is.

    Args:
        model: with no adapter's values in place of the base's.
        exclude: the head's parameters, which belong to the adapter.
    """
    tensors = {**base_parameters(model), **dict(model.named_buffers())}
    persistent = set(model.state_dict())
    return {
        name: {"shape": list(tensor.shape), "sample": _sampled(tensor)}
        for name, tensor in tensors.items()
        if name in persistent and name not in exclude
    }


def _sampled(tensor: torch.Tensor) -> str:
    flat = tensor.detach().reshape(-1)
    places = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLES, len(flat)), dtype=torch.float64)
    values = flat[places.round().long().to(flat.device)].float().cpu()
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def check_fingerprint(
    expected: Mapping[str, Any], actual: Mapping[str, Any], *, where: str, base: str
) -> None:
    """Compare a base with the one an adapter was made on.

    Raises:
        DeltafitError: they differ; the sentence names the first tensor that does.
    """
    for name, entry in expected.items():
        if name not in actual:
            problem = f"it has no tensor {name!r}"
        elif actual[name]["shape"] != entry["shape"]:
            problem = f"{name!r} has shape {actual[name]['shape']} and not {entry['shape']}"
        elif actual[name]["sample"] != entry["sample"]:
            problem = f"the values of {name!r} are others"
        else:
            continue
        raise DeltafitError(
            f"{where} was made on another base than {base}: {problem}. Name the right one with "
            "--model, or train the adapter again on this one."
        )
    extra = [name for name in actual if name not in expected]
    if extra:
        raise DeltafitError(
            f"{where} was made on another base than {base}: this one also has {extra[0]!r}."
        )
