"""What a run's hash tells apart, and what it does not."""

import json
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

FOUND = {"base": {"query": "00ff"}, "tokens": "11", "precision": "float32", "packed": True}


def hash_of(folder: Path, found: dict[str, Any] = FOUND, **changes: Any) -> str:
    """Hash a run on the same texts, kept in a folder of their own."""
    folder.mkdir(exist_ok=True)
    data = write_table(folder / "texts.csv")
    config = RunConfig(str(folder / "model"), DataConfig(data, validation="0.2"), LoRA(rank=2))
    return run_hash(replace(config, **changes), load_splits(data), found)


def test_where_things_lie_is_no_part_of_it(tmp_path: Path) -> None:
    assert hash_of(tmp_path / "here") == hash_of(tmp_path / "there")


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: hash_of(folder, FOUND | {"precision": "bf16"}),
        lambda folder: hash_of(folder, FOUND | {"packed": False}),
        lambda folder: hash_of(folder, FOUND | {"base": {"query": "00fe"}}),
        lambda folder: hash_of(folder, method=LoRA(rank=3)),
        lambda folder: hash_of(folder, settings=TrainingSettings(seed=1)),
        lambda folder: hash_of(folder, settings=TrainingSettings(learning_rate=1e-3)),
    ],
)
def test_what_decides_the_result_is(tmp_path: Path, other: Callable[[Path], str]) -> None:
    assert other(tmp_path) != hash_of(tmp_path)


def test_what_was_left_open_counts_as_it_was_found_and_not_as_it_was_asked_for(
    tmp_path: Path,
) -> None:
    asked = (TrainingSettings(), TrainingSettings(precision="float32", packing="on"))
    assert len({hash_of(tmp_path, settings=settings) for settings in asked}) == 1


def test_texts_count_by_their_content(tmp_path: Path) -> None:
    before = hash_of(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.data.texts.LabelledTexts.content_hash", lambda self: "other texts")
        assert hash_of(tmp_path) != before


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(read_json(file) | changes))


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

    edit(Path(model) / "config.json", hidden_dropout_prob=0.3)
    third = train(model, data, tmp_path / "third", method=LoRA(rank=2), settings=settings)
    assert third.metrics["run_hash"] != first.metrics["run_hash"]
