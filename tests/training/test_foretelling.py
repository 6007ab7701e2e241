"""What a run takes is foretold roughly, from one forward pass and what is trained through."""

from pathlib import Path

import pytest

from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.training import foretelling
from deltafit.training.config import RunConfig
from deltafit.training.foretelling import foretell
from deltafit.training.progress import Silent
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.train import load_data, train
from tests.training.tiny_runs import save_model, tables

Base = tuple[str, DataConfig]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    return save_model(folder / "model"), tables(folder)


def config(base: Base, method: Method, epochs: int = 3) -> RunConfig:
    settings = TrainingSettings(batch_size=4, max_length=32, epochs=epochs)
    return RunConfig(*base, method, settings=settings)


def products(base: Base, method: Method, epochs: int) -> float:
    """Return how often each token of the training texts is foretold to run forward, or as long."""
    run = config(base, method, epochs)
    splits = load_data(run.data)
    return foretell(run, splits, Silent()).seconds / tokens(run)


def tokens(run: RunConfig) -> int:
    return sum(len(text.split()) for text in load_data(run.data).train.texts)


@pytest.mark.parametrize(
    ("method", "once", "times"),
    [
        # Of three blocks: what runs once in all, and what every epoch.
        (Full(), 0.0, 3.0),
        (LoRA(rank=1, target_modules="all-linear"), 0.0, 2.0),
        (LastBlocks(1), 2 / 3, 1.0),
        (Head(), 1.0, 0.0),
    ],
    ids=lambda value: getattr(value, "result_name", str(value)),
)
def test_it_counts_what_is_trained_through(
    base: Base, method: Method, once: float, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foretelling, "_token_seconds", lambda *_: 1.0)
    for epochs in (2, 5):
        expected = once + epochs * times
        # Heads, norms and the adapter's own matrices are some more.
        assert expected <= products(base, method, epochs) < expected + 0.35 * epochs


def test_frozen_blocks_run_in_the_only_epoch_too(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foretelling, "_token_seconds", lambda *_: 1.0)
    assert 5 / 3 <= products(base, LastBlocks(1), 1) < 2


def test_it_is_not_wrong_by_an_order_of_magnitude(base: Base, tmp_path: Path) -> None:
    run = config(base, LoRA())
    found = foretell(run, load_data(run.data), Silent())
    assert found.memory["process_before"] > 0
    result = train(*base, tmp_path / "run", method=run.method, settings=run.settings)
    assert 0.05 < found.seconds / result.metrics["costs"]["training_seconds"] < 20
