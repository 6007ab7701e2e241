"""Training with the pretrained model's dropout off: the head's and the adapters' own stay."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltafit.adapters import adapt
from deltafit.data import resolve_model
from deltafit.engine import frozen_products
from deltafit.errors import UsageError
from deltafit.methods import Full, LoRA
from deltafit.tasks.classification import (
    Classifier,
    HeadSettings,
    batch_of,
    load_classifier,
    logits_of,
)
from deltafit.training.settings import TrainingSettings
from tests.training.test_loop import assert_same, train
from tests.training.tiny_runs import LABELS, adapted, loop_on, save_model, tiny_examples

OFF = TrainingSettings(epochs=1, batch_size=8, weight_decay=0.0, base_dropout="off")
ARCHITECTURES = ["bert", "distilbert", "modernbert", "gpt2", "opt", "deberta-v2"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA(rank=2), Full()])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_off_is_training_a_model_that_has_none(
    tmp_path: Path, architecture: str, method: LoRA | Full
) -> None:
    dropping = save_model(tmp_path / "dropping", architecture, dropout=True)
    without = save_model(tmp_path / "without", architecture)
    off = train(dropping, tmp_path / "a", OFF, method, head="mean")
    settings = replace(OFF, base_dropout="configured")
    plain = train(without, tmp_path / "b", settings, method, head="mean")
    assert_same(off, plain)


def output(classifier: Classifier, folder: Path, seed: int) -> torch.Tensor:
    """What the adapted model gives in training mode, with nothing at zero that would hide it."""
    loop = loop_on(classifier, folder, OFF)
    for parameter in loop.trainable.values():
        torch.nn.init.ones_(parameter)
    loop.modes.train(loop.model)
    torch.manual_seed(seed)
    return logits_of(classifier.model, batch_of(classifier, tiny_examples().rows))


@pytest.mark.parametrize(
    ("method", "head", "drops"),
    [
        (LoRA(rank=2), "architecture", True),
        (LoRA(rank=2, dropout=0.5), "mean", True),
        (LoRA(rank=2), "mean", False),
    ],
)
def test_the_head_and_the_adapters_go_on_dropping_and_nothing_else(
    tmp_path: Path, method: LoRA, head: str, drops: bool
) -> None:
    path = save_model(tmp_path / "model", dropout=True)
    first, second = (output(adapted(path, method, head=head), tmp_path, s) for s in range(2))
    assert torch.equal(first, second) != drops


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_recomputed_blocks_drop_nothing_either(tmp_path: Path, architecture: str) -> None:
    path = save_model(tmp_path / "model", architecture, dropout=True)
    plain = train(path, tmp_path / "a", OFF, head="mean")
    saving = train(path, tmp_path / "b", replace(OFF, gradient_checkpointing=True), head="mean")
    assert_same(plain, saving, 1e-6)


def test_blocks_that_drop_in_their_own_code_cannot_be_recomputed(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model", "opt", dropout=True)
    with pytest.raises(UsageError, match="--base-dropout"):
        loop_on(adapted(path, head="mean"), tmp_path, replace(OFF, gradient_checkpointing=True))


def test_full_fine_tuning_in_place_is_recomputed_too(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model", dropout=True)
    classifier = load_classifier(resolve_model(path), LABELS, HeadSettings("mean"), seed=0)
    adapt(classifier.model, Full(), head=classifier.head_parameters, keep_base=False)
    loop_on(classifier, tmp_path, replace(OFF, gradient_checkpointing=True)).run()


def test_frozen_products_are_reduced_where_nothing_drops(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model", dropout=True)
    classifier = adapted(path, LoRA(rank=2))
    loop = loop_on(classifier, tmp_path, replace(OFF, precision="bf16"))
    loop.modes.train(loop.model)
    products = frozen_products(classifier.model)
    assert products and all(product.training for product in products)
