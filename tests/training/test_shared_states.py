"""Runs that share what their frozen layers gave: as if each had computed it, and paid for it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltafit.engine import FrozenPrefix, StateStores, states
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from deltafit.tasks.classification import Classifier
from deltafit.training import constant
from deltafit.training.config import RunConfig
from deltafit.training.course import Course, Examples
from deltafit.training.features import FrozenFeatures
from deltafit.training.interruption import Interrupted
from deltafit.training.progress import Silent
from deltafit.training.run import execute
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.train import load_data
from tests.training.joined_runs import Plan, joined_loop
from tests.training.test_resume import InterruptAt, assert_same_run
from tests.training.tiny_runs import (
    adapted,
    loop_on,
    save_model,
    tables,
    tiny_examples,
    trained_values,
)

SETTINGS = TrainingSettings(epochs=3, batch_size=4, max_length=12, learning_rate=1e-2)
TOP = LoRA("all-linear", rank=2, layers=(-1,))
SIZE = 4 * 32 * sum(map(len, tiny_examples().rows))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), dropout=True)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of every pass through a frozen prefix."""
    found: list[int] = []
    given = FrozenPrefix.states

    def counted(self: FrozenPrefix, batch: Any) -> torch.Tensor:
        found.append(len(batch["input_ids"]))
        return given(self, batch)

    monkeypatch.setattr(FrozenPrefix, "states", counted)
    yield found


def train(
    classifier: Classifier,
    folder: Path,
    shared: StateStores | None,
    settings: TrainingSettings = SETTINGS,
    rows: Examples | None = None,
) -> tuple[dict[str, torch.Tensor], Course]:
    loop = loop_on(classifier, folder, settings, train=rows, states=shared)
    loop.run()
    return trained_values(classifier), loop.course


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
@pytest.mark.parametrize("method", [Head(), LastBlocks(1), TOP], ids=str)
def test_a_later_run_is_the_same_and_computes_nothing(
    model: str,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
    memory_limit: int,
) -> None:
    monkeypatch.setattr(states, "MEMORY_LIMIT", memory_limit)
    shared = StateStores()
    train(adapted(model, method), tmp_path / "first", shared)
    assert sum(passes) == len(tiny_examples())
    # Another seed, so another head, in another order of rows.
    other = replace(SETTINGS, seed=1, learning_rate=5e-3)
    found, course = train(adapted(model, method, seed=1), tmp_path / "found", shared, other)
    assert sum(passes) == len(tiny_examples()) and course.kept
    alone, expected = train(adapted(model, method, seed=1), tmp_path / "alone", None, other)
    assert sum(passes) == 2 * len(tiny_examples())
    assert_equal(found, alone)
    assert course.history == expected.history
    assert shared.bytes_held(in_memory=bool(memory_limit)) == SIZE


def test_the_blocks_do_not_run_again(model: str, tmp_path: Path) -> None:
    shared = StateStores()
    train(adapted(model, Head()), tmp_path / "first", shared)
    classifier = adapted(model, Head(), seed=1)
    loop = loop_on(classifier, tmp_path / "second", SETTINGS, states=shared)
    called: list[int] = []
    for module in classifier.model.get_submodule("bert.encoder.layer").modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_: called.append(1))
    loop.run()
    assert not called


def change(name: str) -> Callable[[Classifier], object]:
    """Change one value of a parameter by the last bit."""

    def act(classifier: Classifier) -> None:
        values = classifier.model.get_parameter(name).detach().view(-1)
        values[-1] = torch.nextafter(values[-1], torch.tensor(9.0))

    return act


LAYER = "bert.encoder.layer"


@pytest.mark.parametrize(
    ("alter", "found"),
    [
        (lambda classifier: None, True),
        (change("classifier.weight"), True),
        (change(f"{LAYER}.2.output.dense.weight"), True),
        (change("bert.embeddings.word_embeddings.weight"), False),
        (change(f"{LAYER}.0.attention.self.query.bias"), False),
        (lambda classifier: setattr(classifier.model.config, "hidden_act", "relu"), False),
        (lambda classifier: setattr(classifier, "tokenizer", _padding(9)), False),
    ],
    ids=["nothing", "head", "block behind", "embedding", "block", "configuration", "padding"],
)
def test_the_model_that_gave_them_decides(
    model: str, tmp_path: Path, alter: Callable[[Classifier], object], found: bool
) -> None:
    shared = StateStores()
    train(adapted(model, LastBlocks(1)), tmp_path / "first", shared)
    classifier = adapted(model, LastBlocks(1))
    alter(classifier)
    train(classifier, tmp_path / "second", shared)
    assert shared.bytes_held(in_memory=True) == (1 if found else 2) * SIZE


def _padding(token: int) -> Any:
    class Tokenizer:
        pad_token_id = token

    return Tokenizer()


@pytest.mark.slow
def test_rows_passes_threads_and_boundary_decide(model: str, tmp_path: Path) -> None:
    shared, rows = StateStores(), tiny_examples()
    threads = torch.get_num_threads()
    other = [list(row) for row in rows.rows]
    other[3][0] += 1

    def sizes(method: Method = LastBlocks(1), **named: Any) -> int:
        train(adapted(model, method), tmp_path, shared, **named)
        return shared.bytes_held(in_memory=True) // SIZE

    assert sizes() == sizes(rows=Examples(rows.rows, list(reversed(rows.labels)))) == 1
    assert sizes(rows=Examples(other, rows.labels)) == 2
    assert sizes(settings=replace(SETTINGS, batch_size=2)) == 3
    assert sizes(TOP) == 3  # the same boundary as under the last block
    assert sizes(Head()) == 4
    try:
        torch.set_num_threads(threads + 1)
        assert sizes() == 5
    finally:
        torch.set_num_threads(threads)


def test_training_through_all_blocks_is_given_the_memory(model: str, tmp_path: Path) -> None:
    shared = StateStores()
    train(adapted(model, Head()), tmp_path / "first", shared)
    assert shared.bytes_held(in_memory=True) == SIZE
    train(adapted(model, Full()), tmp_path / "full", shared)
    assert shared.bytes_held(in_memory=True) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return tables(tmp_path_factory.mktemp("data"), held_out=12)


@pytest.mark.slow
def test_time_and_memory_are_those_of_a_run_alone(
    model: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, (huge, long) = load_data(data), (1 << 40, 1e6)
    features = FrozenFeatures(model, splits, SETTINGS.max_length, Silent())
    metrics = []
    for seed in range(3):
        if seed == 2:  # as if they had taken so long, and another run's held so much
            for store in features.states._stores.values():
                store.seconds = long
            other = features.states.opened([1], 1, tmp_path)
            assert other is not None
            other.bytes = huge
            features.states.keep(b"another", other)
        config = RunConfig(model, data, TOP, settings=replace(SETTINGS, seed=seed))
        folder = tmp_path / str(seed)
        metrics.append(execute(config, splits, folder, reporter=Silent(), features=features))
    costs = [result.metrics["costs"] for result in metrics]
    assert 0 < costs[0]["training_seconds"] < long < costs[2]["training_seconds"]
    assert 0 < costs[1]["training_seconds"] < long
    assert costs[1]["peak_memory_bytes"] > 0 and costs[2]["peak_memory_bytes"] == 0
    assert metrics[2].metrics["expected_memory"]["process_before"] < 0
    assert len(features.states._stores) == 2  # one for all three seeds, and the other


@pytest.mark.slow
def test_resuming_with_and_without_what_another_run_kept(
    model: str, data: DataConfig, tmp_path: Path, passes: list[int]
) -> None:
    splits = load_data(data)
    config = RunConfig(model, data, LastBlocks(1), settings=SETTINGS)
    whole = execute(config, splits, tmp_path / "whole", reporter=Silent())
    count = len(splits.train)
    assert sum(passes) == count
    for name in ("warm", "cold"):
        features = FrozenFeatures(model, splits, SETTINGS.max_length, Silent())
        execute(
            replace(config, settings=replace(SETTINGS, seed=7)), splits, tmp_path / f"{name}-7",
            reporter=Silent(), features=features,
        )  # fmt: skip
        with pytest.raises(Interrupted):
            execute(config, splits, tmp_path / name, reporter=InterruptAt(5), features=features)
        if name == "cold":
            features = FrozenFeatures(model, splits, SETTINGS.max_length, Silent())
        passes.clear()
        resumed = execute(
            config, splits, tmp_path / name, reporter=Silent(), features=features, resume=True
        )
        assert sum(passes) == (count if name == "cold" else 0)
        assert_same_run(resumed, whole)


@pytest.mark.slow
def test_joined_runs_look_once_and_find_too(
    model: str, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    find = constant.find_prefix

    def counted(*args: Any) -> FrozenPrefix | None:
        looked.append(1)
        return find(*args)

    monkeypatch.setattr(constant, "find_prefix", counted)
    shared = StateStores()
    plans = {
        str(seed): Plan(replace(SETTINGS, seed=seed), replace(TOP, rank=2 + seed))
        for seed in range(3)
    }
    joined_loop(model, tmp_path / "first", plans, states=shared).run({})
    assert len(looked) == 1 and sum(passes) == len(tiny_examples())
    loop = joined_loop(model, tmp_path / "second", plans, states=shared)
    loop.run({})
    assert sum(passes) == len(tiny_examples())
    # And so does a run by itself, on a model that holds no other adapters.
    train(adapted(model, TOP), tmp_path / "alone", shared)
    assert shared.bytes_held(in_memory=True) == SIZE
