"""Feeding a run what its frozen layers gave changes nothing but the time it takes."""

from pathlib import Path

import pytest
import torch

from deltafit.engine import StateStores, states
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.training import constant
from deltafit.training.settings import TrainingSettings
from tests.tiny_models import ENCODERS_ALONE
from tests.training.tiny_runs import adapted, loop_on, save_model, tiny_examples, trained_values

SETTINGS = TrainingSettings(epochs=3, batch_size=4)
TOP = LoRA("all-linear", rank=2, layers=(-1,))


def train(
    folder: Path, method: Method, settings: TrainingSettings = SETTINGS, architecture: str = "bert"
) -> tuple[dict[str, torch.Tensor], list[float], tuple[int, int]]:
    """Return what was trained, its losses, and the bytes kept in memory and in a file."""
    model = save_model(folder / "model", architecture, dropout=True)
    head = "mean" if architecture in ENCODERS_ALONE else "architecture"
    classifier = adapted(model, method, head=head)
    kept = StateStores()
    validation = tiny_examples(6, seed=3)
    loop = loop_on(classifier, folder, settings, validation=validation, states=kept)
    loop.run()
    losses = [entry[key] for entry in loop.course.history for key in ("train_loss", "loss")]
    sizes = kept.bytes_held(in_memory=True), kept.bytes_held(in_memory=False)
    return trained_values(classifier), losses, sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "method", "settings"),
    [
        ("bert", Head(), SETTINGS),
        ("bert", LastBlocks(1), SETTINGS),
        ("bert", TOP, SETTINGS),
        ("gpt2", LastBlocks(2), SETTINGS),
        ("deberta-v2", TOP, SETTINGS),
        ("t5", Head(), SETTINGS),
        ("umt5", LastBlocks(1), SETTINGS),
        ("bert", LastBlocks(1), TrainingSettings(epochs=2, gradient_checkpointing=True)),
    ],
    ids=["head", "last block", "top layer", "gpt2", "deberta", "t5", "umt5", "checkpointing"],
)
def test_kept_in_memory_in_a_file_or_not_at_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    method: Method,
    settings: TrainingSettings,
) -> None:
    kept, losses, sizes = train(tmp_path / "kept", method, settings, architecture)
    tokens = sum(map(len, tiny_examples().rows))
    assert sizes == (4 * 32 * tokens, 0)
    monkeypatch.setattr(states, "MEMORY_LIMIT", 0)
    mapped, _, sizes = train(tmp_path / "mapped", method, settings, architecture)
    assert sizes == (0, 4 * 32 * tokens)
    assert all(torch.equal(kept[name], mapped[name]) for name in kept)
    monkeypatch.setattr(states, "_SHARE", 0)
    _, expected, sizes = train(tmp_path / "anew", method, settings, architecture)
    assert sizes == (0, 0)
    # Not the parameters: Adam makes whole steps of rounding where a gradient should be zero (a
    # key's bias), and the loss does not depend on those.
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", [Head(), LastBlocks(1), TOP], ids=str)
def test_fed_training_is_that_of_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    model, ends = save_model(tmp_path / "model"), []
    for prefix in (True, False):
        if not prefix:
            monkeypatch.setattr(constant, "find_prefix", lambda *_: None)
        classifier = adapted(model, method)
        before = trained_values(classifier)
        loop = loop_on(classifier, tmp_path / str(prefix), SETTINGS, states=StateStores())
        # Plain descent: Adam would make whole steps of rounding where a gradient should be zero.
        group = {"params": list(loop.trainable.values()), "initial_lr": 0.2}
        loop.optimiser.optimizer = torch.optim.SGD([group], lr=0.2)
        assert bool(loop.run().kept) is prefix
        ends.append(trained_values(classifier))
        moved = max(float((ends[-1][name] - before[name]).abs().max()) for name in before)
        assert moved > 1e-2
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("method", "settings"),
    [(Full(), SETTINGS), (LoRA(rank=2), SETTINGS), (Head(), TrainingSettings(epochs=1))],
    ids=str,
)
def test_nothing_is_kept_where_it_is_of_no_use(
    tmp_path: Path, method: Method, settings: TrainingSettings
) -> None:
    assert train(tmp_path, method, settings)[2] == (0, 0)
