"""What a run's hash tells apart, and what it does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafit.data import load_splits
from deltafit.files import read_json
from deltafit.methods import LoRA
from deltafit.training.config import RunConfig
from deltafit.training.identity import run_hash
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.train import train
from tests.training.tiny_runs import save_model, write_table

BASE = {"query": "00ff"}


def hash_of(folder: Path, precision: str = "float32", **changes: Any) -> str:
    """Hash a run on the same texts, kept in a folder of their own."""
    folder.mkdir(exist_ok=True)
    data = write_table(folder / "texts.csv")
    config = RunConfig(str(folder / "model"), DataConfig(data, validation="0.2"), LoRA(rank=2))
    base = changes.pop("base", BASE)
    return run_hash(replace(config, **changes), load_splits(data), base, precision)


def test_where_things_lie_is_no_part_of_it(tmp_path: Path) -> None:
    assert hash_of(tmp_path / "here") == hash_of(tmp_path / "there")


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: hash_of(folder, precision="bf16"),
        lambda folder: hash_of(folder, base={"query": "00fe"}),
        lambda folder: hash_of(folder, method=LoRA(rank=3)),
        lambda folder: hash_of(folder, settings=TrainingSettings(seed=1)),
        lambda folder: hash_of(folder, settings=TrainingSettings(learning_rate=1e-3)),
    ],
)
def test_what_decides_the_result_is(tmp_path: Path, other: Callable[[Path], str]) -> None:
    assert other(tmp_path) != hash_of(tmp_path)


def test_a_precision_counts_as_it_was_decided_and_not_as_it_was_asked_for(tmp_path: Path) -> None:
    hashes = {
        asked: hash_of(tmp_path, "bf16", settings=TrainingSettings(precision=asked))
        for asked in ("auto", "bf16")
    }
    assert hashes["auto"] == hashes["bf16"]


def test_texts_count_by_their_content(tmp_path: Path) -> None:
    before = hash_of(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.data.texts.LabelledTexts.content_hash", lambda self: "other texts")
        assert hash_of(tmp_path) != before


@pytest.mark.slow
def test_a_run_keeps_it_with_its_metrics_and_its_adapter(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), write_table(tmp_path / "texts.csv")
    settings = TrainingSettings(epochs=1, max_length=16)
    first, second = (
        train(model, data, tmp_path / name, method=LoRA(rank=2), settings=settings)
        for name in ("first", "second")
    )
    assert len(first.metrics["run_hash"]) == 64
    assert first.metrics["run_hash"] == second.metrics["run_hash"]
    facts = read_json(tmp_path / "first" / "adapter" / "deltafit.json")
    assert facts["run_hash"] == first.metrics["run_hash"]
