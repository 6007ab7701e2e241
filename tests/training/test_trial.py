"""A trial and what it says of the whole run, on tiny models; and that it leaves nothing."""

import os
import signal
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from deltafit.errors import DeltafitError, TrainingError, UsageError
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method, Prompt, parse_method
from deltafit.training import trial as trials
from deltafit.training.config import RunConfig
from deltafit.training.cost_law import CostLaw
from deltafit.training.estimating import estimate_of, features_of, memory_of
from deltafit.training.interruption import Interrupted
from deltafit.training.learner import Learner
from deltafit.training.own_process import in_own_process
from deltafit.training.preparation import Prepared
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import train
from deltafit.training.trial import Trial, try_jointly, try_run
from deltafit.training.trial_steps import STEPS, Clock
from tests.training.tiny_runs import save_model, tables

Base = tuple[str, DataConfig]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A model and its texts."""
    folder = tmp_path_factory.mktemp("base")
    return save_model(folder / "model", dropout=True), tables(folder)


def config(base: Base, method: Method = LoRA(rank=2), **settings: Any) -> RunConfig:
    made = TrainingSettings(**{"epochs": 2, "batch_size": 4, "max_length": 12, **settings})
    return RunConfig(*base, method, settings=made)


def files(*folders: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for folder in folders for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "method",
    [
        *(Head(), LoRA(rank=2)),
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in (Full(), LastBlocks(1), Prompt(count=2))
        ),
    ],
)
def test_parameters_are_those_of_the_run_and_nothing_is_written(
    base: Base, method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "temporary"
    there.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(there))
    monkeypatch.chdir(tmp_path)
    run, (model, data) = config(base, method), base
    before = files(tmp_path, Path(model), Path(data.data).parent)
    trial = try_run(run)
    assert files(tmp_path, Path(model), Path(data.data).parent) == before
    assert trial.timed == STEPS and trial.problem is None and trial.packed
    assert (trial.freezing is not None) == isinstance(method, Head | LastBlocks)
    assert {name: len(rows) for name, rows in trial.lengths.items()} == {
        "train": 36, "validation": 9, "test": 20,
    }  # fmt: skip

    metrics = train(model, data, tmp_path / "run", method=method, settings=run.settings).metrics
    costs, found = metrics["costs"], estimate_of(trial, [run])
    assert (found.trainable, found.total) == (
        costs["trainable_parameters"], costs["total_parameters"],
    )  # fmt: skip
    assert found.foretold.keys() == metrics["expected_memory"].keys()
    assert found.precision == metrics["precision"]
    assert 0 < found.training.low <= found.training.seconds <= found.training.high
    assert found.epoch.seconds < found.whole.seconds
    assert found.training.seconds < found.whole.seconds
    # On a busy machine: not wrong by an order of magnitude.
    assert 0.1 < found.training.seconds / costs["training_seconds"] < 10


@pytest.mark.slow
def test_a_trial_leaves_threads_and_gradients_as_they_were(base: Base) -> None:
    expected = torch.get_num_threads(), torch.is_grad_enabled()
    try_run(config(base, LoRA(rank=2), gradient_checkpointing=True))
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == expected


@pytest.mark.parametrize("last", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ctrl_c_stops_a_trial(base: Base, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Clock.step

    def pressing(clock: Clock, done: int, *told: float | None) -> None:
        if done == (clock.wanted if last else 2):
            os.kill(os.getpid(), signal.SIGINT)
        step(clock, done, *told)

    monkeypatch.setattr(Clock, "step", pressing)
    with pytest.raises(Interrupted):
        try_run(config(base))


@pytest.mark.slow
@pytest.mark.parametrize("jointly", [False, True])
def test_steps_as_slow_as_can_be_make_no_checkpoint(
    base: Base, jointly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Learner] = []
    minutes = count(step=100.0)
    slow = SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: next(minutes))
    monkeypatch.setattr(f"deltafit.training.{'joined' if jointly else 'loop'}.time", slow)
    monkeypatch.setattr(Learner, "save", saved.append)
    runs = [config(base), config(base, seed=1)]
    assert (try_jointly(runs) if jointly else try_run(runs[0])).timed == STEPS
    assert next(minutes) > 0 and not saved


def test_the_model_is_where_it_is_trained_before_it_is_evaluated(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        pass

    def evaluate(run: Prepared, count: int = 1) -> NoReturn:
        raise SeenError({parameter.device.type for parameter in run.classifier.model.parameters()})

    # A device that every machine has beside its CPU.
    elsewhere = SimpleNamespace(device=torch.device("meta"))
    monkeypatch.setattr(trials, "processes", lambda: elsewhere)
    monkeypatch.setattr(trials, "_evaluate", evaluate)
    for tried in (try_run, lambda run: try_jointly([run, run])):
        with pytest.raises(SeenError, match=r"'meta'"):
            tried(config(base))


def test_memory_grows_with_the_batch_and_the_length(base: Base) -> None:
    run = config(base, Full(), batch_size=4, max_length=8)
    grid = [replace(run.settings, batch_size=b, max_length=m) for m in (4, 8) for b in (2, 4, 8)]
    trial = try_run(run, grid)
    memory = [memory_of(trial, foretold) for foretold in trial.variants]
    assert memory[:3] == sorted(memory[:3]) and memory[3:] == sorted(memory[3:])
    assert all(short < long for short, long in zip(memory[:3], memory[3:], strict=True))
    # What was measured is what is said of the run that was tried.
    assert memory[4] == pytest.approx(trial.peak, rel=1e-6)
    # Settings that were not tried have fewer tokens, or fewer steps, and so less time.
    times = [estimate_of(trial, [replace(run, settings=each)]).training.seconds for each in grid]
    assert times[0] <= times[3] and times[1] <= times[4]


def test_what_a_run_is_made_of(base: Base) -> None:
    run = config(base, epochs=3, judge_training=True, evaluate_every=4)
    second = CostLaw((1.0, 0.0, 0.0))  # every step and every pass takes one second
    trial = replace(
        try_run(run), steps=second, evaluating=second, loading=5.0, looking=0.0, checking=2.0,
        proving=3.0,
    )  # fmt: skip
    found = estimate_of(trial, [run])
    parts = {name: span.seconds for name, span in found.parts.items() if name != "writing"}
    assert parts == {
        "loading": 5, "evaluation before": 3, "looking at texts": 0, "checks": 2,
        "frozen layers": 0, "steps": 27, "validation": 7, "evaluation after": 3, "proof": 3,
    }  # fmt: skip
    assert found.epoch.seconds == 9 + 1 and found.training.seconds == 27
    assert 0 < found.parts["writing"].seconds < 0.1
    assert features_of(trial).seconds == 3
    jointly = [run, replace(run, settings=replace(run.settings, seed=1, epochs=5))]
    both = estimate_of(trial, jointly)
    assert both.parts["steps"].seconds == 45  # a step of both counts once, and here one second
    assert both.parts["evaluation after"].seconds == both.parts["evaluation before"].seconds == 6


@pytest.mark.slow
def test_joined_runs(base: Base) -> None:
    runs = [config(base, LoRA(rank=rank), seed=seed) for rank in (2, 4) for seed in (0, 1)]
    trial = try_jointly(runs)
    assert trial.timed == STEPS and trial.peak is not None
    assert trial.trainable == try_run(runs[-1]).trainable
    found = estimate_of(trial, runs)
    assert 0 < found.training.low <= found.training.high
    with pytest.raises(UsageError, match="train"):
        try_jointly([config(base, Full()), config(base, Full(), seed=1)])


@pytest.mark.slow
def test_fewer_rows_than_a_step_takes(base: Base) -> None:
    run = config(base, batch_size=64, accumulation=2)
    assert try_run(run).timed == STEPS


@pytest.mark.slow
def test_a_head_that_texts_choose_is_tried_as_a_new_one(base: Base) -> None:
    run = replace(config(base), head=HeadConfig("auto", "probe"))
    assert estimate_of(try_run(run), [run]).training.seconds > 0


def test_what_does_not_fit_is_not_tried(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(available=1000)
    monkeypatch.setattr(trials.psutil, "virtual_memory", lambda: free)
    run = config(base)
    trial = try_run(run)
    assert trial.peak is None and "0.0 GB are free here" in str(trial.problem)
    found = estimate_of(trial, [run])
    assert found.problem == trial.problem and found.parts == {} and found.whole.seconds == 0
    assert found.memory == sum(found.foretold.values())


def test_joined_runs_that_do_not_fit_are_not_tried(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [config(base, LoRA(rank=rank)) for rank in (4, 2)]
    seen: list[int] = []

    def too_large(foretold: dict[str, int]) -> str:
        seen.append(foretold["gradients"] + foretold["optimiser"])
        return "It is too large."

    monkeypatch.setattr(trials, "too_large", too_large)
    trial = try_jointly(runs)
    alone = [try_run(run) for run in runs]
    assert trial.problem == "It is too large." and trial.peak is None and trial.timed == 0
    assert seen[0] == seen[1] + seen[2], "each run has gradients and moments of its own"
    assert trial.trainable == alone[0].trainable
    found = estimate_of(trial, runs)
    assert found.parts == {} and found.memory == sum(trial.foretold.values())


@pytest.mark.slow
def test_a_process_of_its_own() -> None:
    assert in_own_process(parse_method, "lora:rank=2") == LoRA(rank=2)
    with pytest.raises(UsageError, match="nonsense"):
        in_own_process(parse_method, "nonsense")
    with pytest.raises(DeltafitError, match="Training it fell"):
        in_own_process(_fails)
    with pytest.raises(DeltafitError, match="want of memory"):
        in_own_process(_dies)


def _fails() -> Trial:
    raise TrainingError("it fell")


def _dies() -> Trial:
    os.abort()  # as the system would
