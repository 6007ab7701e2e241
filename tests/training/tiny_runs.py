"""Tiny models saved to disk with a tokenizer, a tiny table, and a loop on them: no network.

Import as ``from tests.training.tiny_runs import save_model, write_table``.
"""

import csv
import random
from pathlib import Path

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deltafit.adapters import adapt
from deltafit.data import resolve_model
from deltafit.engine import StateStores
from deltafit.files import read_json, read_tensors
from deltafit.methods import LoRA, Method
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier
from deltafit.training.looking import look_at_texts
from deltafit.training.loop import Examples, Halt, TrainingLoop
from deltafit.training.progress import Silent
from deltafit.training.settings import DataConfig, TrainingSettings
from tests.tiny_models import DECODERS, VOCABULARY, tiny_model

LABELS = ("bad", "good", "mixed")
WORDS = tuple(f"w{number}" for number in range(VOCABULARY - 4))
# Qwen's tokenizer class insists on this end of text.
SPECIAL = ("<s>", "<pad>", "<|endoftext|>", "<unk>")


def tiny_tokenizer(*, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token a word; ids 0–3 are begin, pad, end and unknown."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": SPECIAL[2], "unk_token": "<unk>"}
    if pad:
        special["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout of the model and of its configuration to zero."""
    for name, value in vars(model.config).items():
        if isinstance(value, float) and ("drop" in name):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def save_model(
    folder: Path, architecture: str = "bert", *, dropout: bool = False, task: str = "base"
) -> str:
    """Write a tiny checkpoint with its tokenizer; decoders' tokenizers have no pad token."""
    model = tiny_model(architecture, task=task)
    if not dropout:
        without_dropout(model)
    model.save_pretrained(folder)
    tiny_tokenizer(pad=architecture not in DECODERS).save_pretrained(folder)
    return str(folder)


def tiny_texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 2 to 9 words with a label that one of the first words decides."""
    chosen = random.Random(seed)
    rows = []
    for index in range(count):
        label = index % len(LABELS)
        words = chosen.choices(WORDS[6:], k=chosen.randint(1, 8))
        words.insert(chosen.randint(0, len(words)), WORDS[2 * label + chosen.randint(0, 1)])
        rows.append((" ".join(words), LABELS[label]))
    return rows


def write_table(path: Path, count: int = 45, seed: int = 0) -> str:
    """Write ``tiny_texts`` as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(tiny_texts(count, seed))
    return str(path)


def tables(folder: Path, held_out: int = 20) -> DataConfig:
    """Training and test rows as CSV; a fifth of the former are for validation."""
    train = write_table(folder / "train.csv")
    return DataConfig(train, write_table(folder / "test.csv", held_out, seed=5), "0.2")


def tiny_examples(count: int = 22, seed: int = 0) -> Examples:
    """The same texts as token ids."""
    rows = tiny_texts(count, seed)
    return Examples(
        [tiny_tokenizer()(text)["input_ids"] for text, _ in rows],
        [LABELS.index(label) for _, label in rows],
    )


def adapted(
    model: str, method: Method | None = None, *, head: str = "architecture", seed: int = 0
) -> Classifier:
    """Load a checkpoint and adapt it."""
    settings = HeadSettings(head)  # type: ignore[arg-type]  # tests give strings
    classifier = load_classifier(resolve_model(model), LABELS, settings, seed=seed)
    method, training = method or LoRA(rank=2), TrainingSettings(seed=seed)
    adapt(
        classifier.model, method, seed=seed, head=classifier.head_parameters,
        statistics=look_at_texts(classifier, tiny_examples(), method, training, Silent()),
    )  # fmt: skip
    return classifier


def loop_on(
    classifier: Classifier,
    folder: Path,
    settings: TrainingSettings,
    *,
    train: Examples | None = None,
    validation: Examples | None = None,
    accelerator: Accelerator | None = None,
    learning_rate: float = 1e-2,
    states: StateStores | None = None,
    halt: Halt | None = None,
) -> TrainingLoop:
    """A loop on tiny rows."""
    return TrainingLoop(
        classifier,
        train or tiny_examples(),
        validation,
        settings,
        learning_rate=learning_rate,
        folder=folder / "checkpoints",
        reporter=Silent(),
        accelerator=accelerator or Accelerator(),
        states=states,
        halt=halt,
    )


def trained_values(classifier: Classifier) -> dict[str, torch.Tensor]:
    """Copies of the parameters that require gradients."""
    return {
        name: parameter.detach().clone()
        for name, parameter in classifier.model.named_parameters()
        if parameter.requires_grad
    }


def trained_alike(one: Path, two: Path) -> None:
    """Assert that a run of one process and one of two came out the same up to rounding."""
    metrics = [read_json(folder / "metrics.json") for folder in (one, two)]
    assert [m["environment"]["processes"] for m in metrics] == [1, 2]
    assert metrics[0]["costs"]["examples_seen"] == metrics[1]["costs"]["examples_seen"] > 0
    losses = [[entry["train_loss"] for entry in m["history"]] for m in metrics]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
    expected, found = (
        read_tensors(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)
    )
    assert expected.keys() == found.keys()
    for name in expected:
        # A key's bias moves all scores of a row alike: its gradient is rounding alone, which Adam
        # makes as large as any other's.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5, msg=name)
