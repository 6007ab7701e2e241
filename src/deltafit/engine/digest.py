"""What decides what a model computes, as one short value: classes, configuration and tensors."""

from collections.abc import Collection
from hashlib import blake2b
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from deltafit.adapters.quantised import QuantisedLinear
from deltafit.adapters.structure import is_excluded


def model_digest(model: nn.Module, left_out: Collection[str]) -> bytes:
    """Return a digest of a model in evaluation mode; 32 bytes.

    Every byte of its parameters and buffers counts, with their names, shapes and types. Adapters
    that are not active count too, though they decide nothing.

    Args:
        model: on any device.
        left_out: names of modules that do not count, nor what is inside them.
    """
    digest = blake2b(digest_size=32)
    for path, module in model.named_modules():
        if is_excluded(path, left_out):
            continue
        digest.update(f"{type(module).__module__}.{type(module).__qualname__}\n".encode())
        if isinstance(module, PreTrainedModel):
            # The way of attention is no part of the JSON.
            config = module.config.to_json_string(use_diff=False)
            digest.update(f"{module.config._attn_implementation} {config}\n".encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not is_excluded(name, left_out):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    for path, module in model.named_modules():
        # What its few bits are multiplied by is no parameter.
        if isinstance(module, QuantisedLinear) and not is_excluded(path, left_out):
            digest.update(module.dense().detach().cpu().contiguous().numpy().data)
    return digest.digest()
