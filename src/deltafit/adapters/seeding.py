"""Random numbers keyed by a seed and the name of their use: the order of use does not matter."""

import hashlib

import torch
from torch import Generator


def keyed_seed(seed: int, name: str) -> int:
    """Return a seed of 63 bits that depends on ``seed`` and the name of its use alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, tensor_name: str) -> Generator:
    """Return a CPU generator that depends on ``seed`` and the tensor's name alone."""
    return torch.Generator().manual_seed(keyed_seed(seed, tensor_name))
