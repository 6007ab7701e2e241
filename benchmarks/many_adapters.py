"""A batch in which every row has an adapter of its own: deltafit, and PEFT's `adapter_names`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, DataCollatorWithPadding

import rivals
from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    load_adapter,
    read_adapter,
    save_adapter,
)
from deltafit.data import resolve_model, tokenise
from deltafit.engine import mixed, packed
from deltafit.files import read_tensors, write_tensors_atomically
from deltafit.methods import LoRA
from deltafit.tasks.classification import (
    Classifier,
    HeadSettings,
    batch_of,
    load_classifier,
    logits_of,
)
from deltafit.tasks.inference import tokenise_for
from measuring import Stopwatch, in_another_process, memory, record_of
from roofline import forward_seconds, products_of
from works import OURS, Work

_TOLERANCE = 1e-4  # of the largest logit: rounding stays far below, another adapter far above
_ALONE = "alone.safetensors"

Rows = list[list[int]]
Pass = Callable[[Rows, Sequence[str]], Tensor]
"""Takes the rows of a batch and the adapter of each, and gives ``[rows, labels]``."""


def run(
    work: Work, side: str, model: str, splits: Any, folder: Path, watch: Stopwatch | None = None
) -> dict[str, Any]:
    """Run ``work.steps`` batches, as many adapters as rows; return what is kept of it.

    The first batch is not timed: its logits must be those of each row alone under its adapter.
    """
    size = work.batch_size
    texts = list(splits.parts()["test"].texts[: size * (work.steps + 1)])
    labels = splits.train.label_names
    in_another_process(_prepare, work, model, labels, texts[:size], folder)
    rows = tokenise(AutoTokenizer.from_pretrained(model), texts, work.max_length).input_ids
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    names = [_name(number) for number in range(size)]
    floor = memory()
    logits, network = (_ours if side == OURS else _peft)(model, labels, names, folder)
    with torch.inference_mode():
        _check(logits(batches[0], names), read_tensors(folder / _ALONE)["logits"], side)
        with watch or Stopwatch() as timed:
            for number, batch in enumerate(batches[1:], 1):
                # Other adapters in another order each time, as requests come.
                logits(batch, names[number % size :] + names[: number % size])
    peak, roofline = memory(), None
    tokens = [sum(map(len, batch)) for batch in batches[1:]]
    if side == OURS:
        products = products_of(network, {"input_ids": torch.tensor(rows[:1])})
        texts = list(map(len, batches[1:]))
        roofline = forward_seconds(products, tokens, texts, "float32")
    return record_of(timed.seconds, sum(tokens), peak, floor, roofline=roofline)


def _name(number: int) -> str:
    return f"adapter{number}"


def _loaded(model: str, labels: Sequence[str]) -> Classifier:
    return load_classifier(resolve_model(model), labels, HeadSettings(), seed=0)


def _prepare(work: Work, model: str, labels: Sequence[str], texts: list[str], folder: Path) -> None:
    """Write an adapter for every row of a batch, and what each gives the first batch's row."""
    classifier = _loaded(model, labels)
    rows = tokenise_for(classifier, texts, work.max_length).input_ids
    generator = torch.Generator().manual_seed(0)
    method = LoRA(rank=8, alpha=16, target_modules=("query", "value"))
    alone = []
    with torch.no_grad():
        for number, row in enumerate(rows):
            name = _name(number)
            adapt(classifier.model, method, name=name, head=classifier.head_parameters)
            for tensor in adapter_tensors(classifier.model, name).values():
                tensor.copy_(0.05 * torch.randn(tensor.shape, generator=generator))
            save_adapter(
                classifier.model, folder / name, name, base_name=model, task_type="SEQ_CLS"
            )
            activate(classifier.model, name)
            classifier.model.eval()
            alone.append(logits_of(classifier.model, batch_of(classifier, [row])))
    write_tensors_atomically(folder / _ALONE, {"logits": torch.cat(alone)})


def _ours(
    model: str, labels: Sequence[str], names: Sequence[str], folder: Path
) -> tuple[Pass, nn.Module]:
    classifier = _loaded(model, labels)
    for name in names:
        load_adapter(classifier.model, read_adapter(folder / name), name)
    classifier.model.eval()

    def logits(rows: Rows, adapters: Sequence[str]) -> Tensor:
        with packed(classifier.model), mixed(classifier.model, [(name, 1) for name in adapters]):
            return logits_of(classifier.model, batch_of(classifier, rows))

    return logits, classifier.model


def _peft(
    model: str, labels: Sequence[str], names: Sequence[str], folder: Path
) -> tuple[Pass, nn.Module]:
    tokenizer, network = rivals.load(model, len(labels))
    adapted = PeftModel.from_pretrained(network, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        adapted.load_adapter(folder / name, adapter_name=name)
    adapted.eval()
    collate = DataCollatorWithPadding(tokenizer)

    def logits(rows: Rows, adapters: Sequence[str]) -> Tensor:
        batch = collate([{"input_ids": row} for row in rows])
        found: Tensor = adapted(**batch, adapter_names=list(adapters)).logits
        return found

    return logits, adapted


def _check(found: Tensor, expected: Tensor, side: str) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE:
        raise ValueError(f"{side} gives other logits than each row alone: by {difference:.1g}.")
