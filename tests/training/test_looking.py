"""Looking at texts before the start: what is found, that nothing is changed, and what runs make."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import adapt, model_adapters
from deltafit.adapters.statistics import Statistics
from deltafit.data import epoch_order, resolve_model
from deltafit.errors import DeltafitError
from deltafit.files import read_tensors
from deltafit.methods import LoRA, Sparse
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier
from deltafit.training import joined_run, looking, run
from deltafit.training.config import RunConfig
from deltafit.training.interruption import Interrupted
from deltafit.training.looking import look_at_texts
from deltafit.training.progress import Silent
from deltafit.training.settings import TrainingSettings
from deltafit.training.train import load_data
from tests.adapters.adapted import anatomy
from tests.training.test_joined_run import SETTINGS, jointly, single
from tests.training.test_resume import (
    InterruptAt,
    _one_thread,  # noqa: F401  # a fixture
    assert_same_run,
    go,
    inputs,  # noqa: F401  # a fixture
)
from tests.training.tiny_runs import LABELS, save_model, tables, tiny_examples

GRADIENT = Sparse(("query", "word_embeddings"), mask="gradient")
EVA = LoRA(("query",), rank=2, initialisation="eva")
TRAINING = TrainingSettings(class_weights="balanced", label_smoothing=0.1, seed=3)
ROWS = tiny_examples(22)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"), dropout=True)


def loaded(model: str, head: Any = "architecture") -> Classifier:
    return load_classifier(resolve_model(model), LABELS, HeadSettings(head), seed=0)


def look(classifier: Classifier, method: Any, settings: Any = TRAINING, **more: Any) -> Statistics:
    return look_at_texts(classifier, ROWS, method, settings, Silent(), **more)


def test_the_gradient_is_that_of_the_loss_of_all_texts(bert: str) -> None:
    classifier = loaded(bert)
    found = look(classifier, GRADIENT)
    model = classifier.model.eval()
    counts = np.bincount(ROWS.labels)
    weights = torch.from_numpy(len(ROWS) / (len(counts) * counts)).float()  # scikit-learn's formula
    criterion = nn.CrossEntropyLoss(weights, reduction="sum", label_smoothing=0.1)
    total = torch.zeros(())
    for row, label in zip(ROWS.rows, ROWS.labels, strict=True):
        total = total + criterion(model(torch.tensor([row])).logits, torch.tensor([label]))
    names = [n for n, _ in model.named_modules() if n.endswith(("query", "word_embeddings"))]
    parameters = [model.get_submodule(name).weight for name in names]
    assert set(found) == set(names)
    for name, expected in zip(names, torch.autograd.grad(total, parameters), strict=True):
        got = found[name]["gradient"].float()
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_moments_are_those_of_the_hidden_states_without_padding(bert: str) -> None:
    classifier = loaded(bert)
    found = look(classifier, EVA)
    states: list[list[Tensor]] = []
    with torch.no_grad():
        for row in ROWS.rows:
            output = classifier.model.eval()(torch.tensor([row]), output_hidden_states=True)
            states.append([state[0].double() for state in output.hidden_states])
    for name, statistic in found.items():
        block = int(name.split("layer.")[1].split(".")[0])
        x = torch.cat([of_text[block] for of_text in states])  # a block's queries read its input
        assert len(x) == sum(map(len, ROWS.rows))
        torch.testing.assert_close(statistic["mean"], x.mean(0), rtol=1e-4, atol=1e-6)
        expected = x.T @ x / len(x)
        torch.testing.assert_close(statistic["second_moment"], expected, rtol=1e-4, atol=1e-5)


def test_no_more_texts_than_so_many_and_which_by_the_seed(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "TEXTS", 5)
    seen: list[list[int]] = []
    batch_of = looking.batch_of

    def watched(classifier: Classifier, rows: Any) -> Any:
        seen.extend(rows)
        return batch_of(classifier, rows)

    monkeypatch.setattr(looking, "batch_of", watched)
    look(loaded(bert), EVA)
    assert seen == [ROWS.rows[row] for row in epoch_order(22, 3, 0)[:5]]
    assert not look(loaded(bert), LoRA()) and len(seen) == 5


@pytest.mark.parametrize("method", [GRADIENT, EVA])
def test_the_model_is_left_as_it_was(bert: str, method: Any) -> None:
    classifier = loaded(bert)
    classifier.model.train()
    before, state = anatomy(classifier.model), torch.get_rng_state()
    first = look(classifier, method)
    assert anatomy(classifier.model) == before and classifier.model.training
    assert all(p.grad is None for p in classifier.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    # Another adapter is no part of what is looked at, and stays active.
    adapt(classifier.model, LoRA(rank=2), name="other", head=classifier.head_parameters)
    for parameter in classifier.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    again = look(classifier, method)
    assert model_adapters(classifier.model).active == "other"
    for name, statistic in first.items():
        for key, tensor in statistic.items():
            assert torch.equal(tensor, again[name][key]), name


def test_behind_a_head_of_zeros_there_is_no_gradient_to_choose_by(bert: str) -> None:
    classifier = loaded(bert, "mean")
    found = look(classifier, GRADIENT)
    with pytest.raises(DeltafitError, match="new pooled head, which starts at zero"):
        adapt(classifier.model, GRADIENT, statistics=found)
    model = classifier.model
    head = {n: torch.randn_like(model.get_parameter(n)) for n in classifier.head_parameters}
    found = look(classifier, GRADIENT, head=head)
    adapt(classifier.model, GRADIENT, statistics=found)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_mask_that_it_began_with(
    inputs: tuple[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = Sparse(density=0.1, mask="gradient")
    whole = go(inputs, tmp_path / "whole", method=method)
    with pytest.raises(Interrupted):
        go(inputs, tmp_path / "run", method=method, reporter=InterruptAt(3))

    def otherwise(*arguments: Any, **named: Any) -> Statistics:
        found = look_at_texts(*arguments, **named)
        return {name: {"gradient": s["gradient"].flip(0)} for name, s in found.items()}

    monkeypatch.setattr(run, "look_at_texts", otherwise)
    assert_same_run(go(inputs, tmp_path / "run", method=method, resume=True), whole)


@pytest.mark.slow
def test_looking_is_part_of_the_time_alone_and_jointly(
    tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0.0, 1000.0)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    for module in (run, joined_run):
        monkeypatch.setattr(module, "time", clock)  # they time nothing else
    data = tables(tmp_path, held_out=12)
    splits = load_data(data)
    short = replace(SETTINGS, epochs=1)
    configs = [RunConfig(bert, data, EVA, settings=replace(short, seed=s)) for s in range(2)]
    metrics = single(configs[0], splits, tmp_path / "single").metrics
    assert 1000 < metrics["costs"]["training_seconds"] < 2000
    for result in jointly(configs, splits, tmp_path / "jointly"):
        assert not isinstance(result, DeltafitError)
        assert 1000 < result.metrics["costs"]["training_seconds"] < 2000


@pytest.mark.slow
def test_joined_runs_look_each_with_its_own_head_and_come_out_as_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = save_model(tmp_path_factory.mktemp("plain"))
    data = tables(tmp_path, held_out=12)
    splits = load_data(data)
    sparse = Sparse(("query",), density=0.1, mask="gradient")
    configs = [
        RunConfig(model, data, method, settings=replace(SETTINGS, epochs=1, seed=seed))
        for method, seed in ((EVA, 0), (sparse, 0), (sparse, 1))
    ]
    masks = []
    for number, result in enumerate(jointly(configs, splits, tmp_path / "jointly")):
        assert not isinstance(result, DeltafitError)
        alone = single(configs[number], splits, tmp_path / f"alone{number}")
        name = "adapter/adapter_model.safetensors"
        first, second = read_tensors(result.folder / name), read_tensors(alone.folder / name)
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_allclose(first[key], second[key], rtol=0, atol=1e-5)
        masks.append([t for key, t in first.items() if key.endswith("sparse_indices")])
    assert not masks[0] and not torch.equal(masks[1][0], masks[2][0])
