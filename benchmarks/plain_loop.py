"""The rival of the paper: microsoft's loralib in a plain loop of torch, padded batches."""

import time
from pathlib import Path
from typing import Any

import loralib
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from deltafit.methods import LoRA, parse_method
from measuring import Training, memory
from rivals import Counting, load, rows_of, targets_of
from works import HELD_OUT, Work


def train(work: Work, side: str, model: str, splits: Any, folder: Path) -> Training:
    """Train a BERT by loralib; rate, schedule and clipping as the Trainer has them by default."""
    tokenizer, network = load(model, len(splits.train.label_names))
    method = parse_method(work.method)
    assert isinstance(method, LoRA)
    put_loralib(network, method)
    collator = Counting(tokenizer)
    rows = rows_of(tokenizer, splits.train, work.max_length)
    loader = DataLoader(
        rows, work.batch_size, shuffle=True, collate_fn=collator,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=work.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / work.steps)
    result = Training()
    network.train()
    while len(result.moments) < work.steps:
        for batch in loader:
            loss = network(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            result.losses.append(loss.item())
            result.moments.append(time.perf_counter())
            if len(result.moments) == work.steps:
                break
    result.peak, result.tokens = memory(), list(collator.tokens)
    held_out = rows_of(tokenizer, splits.validation, work.max_length)[:HELD_OUT]
    result.accuracy = _accuracy(network, held_out, collator)
    return result


def put_loralib(network: nn.Module, method: LoRA) -> None:
    """Replace the method's layers by loralib's, and train their adapters and the head alone."""
    targets = targets_of(method)
    for name, layer in list(network.named_modules()):
        above, _, last = name.rpartition(".")
        if last not in targets or not isinstance(layer, nn.Linear) or "pooler" in name:
            continue
        bias = layer.bias is not None
        changed = loralib.Linear(
            layer.in_features, layer.out_features, r=method.rank, lora_alpha=method.alpha, bias=bias
        )
        changed.load_state_dict(layer.state_dict(), strict=False)  # the adapter is what is missing
        setattr(network.get_submodule(above), last, changed)
    loralib.mark_only_lora_as_trainable(network)
    network.get_submodule("classifier").requires_grad_(True)


@torch.no_grad()
def _accuracy(network: nn.Module, rows: list[dict[str, Any]], collator: Counting) -> float:
    network.eval()
    right: list[bool] = []
    for batch in DataLoader(rows, 64, collate_fn=collator):
        right += (network(**batch).logits.argmax(1) == batch["labels"]).tolist()
    return float(np.mean(right))
