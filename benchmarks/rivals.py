"""The rivals: PEFT with transformers' Trainer, as people run them, for both benchmarks."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from deltafit.data import resolve_model, tokenise
from deltafit.methods import LoRA, parse_method
from measuring import Training, memory
from works import GROUPED, HELD_OUT, REDUCED, Work

# Names of the linear layers in the blocks of BERT and of Llama.
_LINEAR = ("query", "key", "value", "dense")
_LINEAR += ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(model: str, num_labels: int) -> tuple[Any, nn.Module]:
    """Return a model's tokenizer and its classifier in float32, all of it trainable; seed 0."""
    set_seed(0)
    location = resolve_model(model).location
    tokenizer = AutoTokenizer.from_pretrained(location)
    network = AutoModelForSequenceClassification.from_pretrained(
        location, num_labels=num_labels, dtype=torch.float32
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, network


def targets_of(method: LoRA) -> list[str]:
    """Return the last names of the layers that a LoRA method of deltafit's adapts."""
    chosen = method.target_modules
    return list(_LINEAR) if chosen == "all-linear" else list(chosen or ())


def restricted(network: nn.Module, method: str) -> nn.Module:
    """Return the network with everything frozen but what the method trains, by PEFT or by hand.

    A pooler is part of the checkpoint, and frozen as deltafit freezes it.
    """
    parsed = parse_method(method)
    if isinstance(parsed, LoRA):
        config = LoraConfig(
            task_type="SEQ_CLS", r=parsed.rank, lora_alpha=parsed.alpha,
            target_modules=targets_of(parsed), exclude_modules=".*pooler.*",
        )  # fmt: skip
        return get_peft_model(network, config)
    if method != "full":
        for name, parameter in network.named_parameters():
            above = name.startswith("classifier")
            parameter.requires_grad = above or (method == "last-block" and ".layer.5." in name)
    return network


def rows_of(tokenizer: Any, part: Any, max_length: int) -> list[dict[str, Any]]:
    """Return texts and labels as the Trainer takes them."""
    ids = tokenise(tokenizer, part.texts, max_length).input_ids
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, part.labels, strict=True)]


def make_trainer(
    network: nn.Module,
    rows: list[dict[str, Any]],
    folder: Path,
    collator: DataCollatorWithPadding,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Trainer:
    """Return a Trainer with its defaults for everything not named."""
    asked = TrainingArguments(
        str(folder), report_to=[], save_strategy="no", per_device_eval_batch_size=64, seed=0,
        use_cpu=not torch.cuda.is_available(), disable_tqdm=True, **arguments,
    )  # fmt: skip
    return Trainer(
        network, asked, train_dataset=rows, data_collator=collator, callbacks=list(callbacks)
    )


class Counting(DataCollatorWithPadding):  # type: ignore[misc]  # transformers' class is untyped
    """Pads batches, and counts the real tokens of each."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.tokens: list[int] = []

    def __call__(self, features: Any) -> Any:
        """Return the padded batch."""
        self.tokens.append(sum(len(row["input_ids"]) for row in features))
        return super().__call__(features)


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the moment."""
        self.moments.append(time.perf_counter())


def train(work: Work, side: str, model: str, splits: Any, folder: Path) -> Training:
    """Train a work by the Trainer: with its defaults, or grouped by length, or so in bf16."""
    clock = Clock()
    trainer, collator = trainer_of(work, side, model, splits, folder, clock)
    trainer.train()
    peak, tokens = memory(), list(collator.tokens)
    held_out = rows_of(collator.tokenizer, splits.validation, work.max_length)[:HELD_OUT]
    return Training(
        moments=clock.moments,
        tokens=tokens,
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        precision="bf16" if side == REDUCED else "float32",
        accuracy=float(np.mean(correct(trainer, held_out))),
        peak=peak,
    )


def trainer_of(
    work: Work, side: str, model: str, splits: Any, folder: Path, clock: TrainerCallback
) -> tuple[Trainer, Counting]:
    """Return a work's Trainer, which tells the clock of its steps, and what pads its batches."""
    tokenizer, network = load(model, len(splits.train.label_names))
    collator = Counting(tokenizer)
    grouped = side in (GROUPED, REDUCED)
    trainer = make_trainer(
        restricted(network, work.method), rows_of(tokenizer, splits.train, work.max_length),
        folder / "trainer", collator,
        callbacks=[clock], max_steps=work.steps, logging_steps=1,
        per_device_train_batch_size=work.batch_size, learning_rate=work.learning_rate,
        bf16=side == REDUCED,
        train_sampling_strategy="group_by_length" if grouped else "random",
    )  # fmt: skip
    return trainer, collator


def correct(trainer: Trainer, rows: list[dict[str, Any]]) -> np.ndarray:
    """Return which rows a trained classifier gets right, bool ``[rows]``."""
    labels = np.array([row["labels"] for row in rows])
    right: np.ndarray = trainer.predict(rows).predictions.argmax(1) == labels
    return right
