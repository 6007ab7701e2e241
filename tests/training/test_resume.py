"""Stopped runs, resumed, leave the very bytes of the undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltafit.errors import DeltafitError, UsageError
from deltafit.files import read_tensors
from deltafit.methods import Full, LastBlocks, LoRA, Method
from deltafit.training.checkpoints import Checkpoint, restore, save_checkpoint
from deltafit.training.interruption import Interrupted, stop_requested
from deltafit.training.progress import Silent
from deltafit.training.run import RunResult
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import train
from tests.training.tiny_runs import save_model, write_table

# 40 training rows in steps of 14: three an epoch, six in all; evaluated at 2, 4 and 6.
SETTINGS = TrainingSettings(
    epochs=2, batch_size=7, accumulation=2, learning_rate=1e-2, evaluate_every=2, max_length=16
)
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are killed
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    model = save_model(folder / "model", dropout=True)
    return model, write_table(folder / "texts.csv", 45)


@pytest.fixture(scope="module")
def undisturbed(inputs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return go(inputs, tmp_path_factory.mktemp("undisturbed") / "run")


class InterruptAt(Silent):
    """Presses Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        if loss is not None and done == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def go(inputs: tuple[str, str], folder: Path, **changes: Any) -> RunResult:
    options: dict[str, Any] = {"method": LoRA(rank=2), "settings": SETTINGS} | changes
    data = DataConfig(inputs[1], validation="0.12")
    return train(inputs[0], data, folder, **options)


def assert_same_run(one: RunResult, other: RunResult) -> None:
    for name in ("adapter/adapter_model.safetensors", "predictions.safetensors"):
        first, second = (read_tensors(run.folder / name) for run in (one, other))
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key].view(torch.uint8), second[key].view(torch.uint8)), key
    for key in ("history", "after", "before", "best_step", "notes"):
        assert one.metrics[key] == other.metrics[key], key
    assert one.metrics["costs"]["examples_seen"] == other.metrics["costs"]["examples_seen"]


@pytest.mark.slow
def test_repeats_bit_for_bit(
    inputs: tuple[str, str], undisturbed: RunResult, tmp_path: Path
) -> None:
    torch.manual_seed(12345)  # whatever the process did before
    assert_same_run(go(inputs, tmp_path / "run"), undisturbed)
    assert [entry["step"] for entry in undisturbed.metrics["history"]] == [2, 4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA(rank=2), Full(), LastBlocks(1)], ids=str)
def test_interrupted_in_every_step(
    inputs: tuple[str, str], undisturbed: RunResult, tmp_path: Path, method: Method
) -> None:
    whole = go(inputs, tmp_path / "whole", method=method) if method != LoRA(rank=2) else undisturbed
    for step in range(1, STEPS):
        with pytest.raises(Interrupted, match=rf"after step {step} of 6; a checkpoint"):
            go(
                inputs, tmp_path / "run", method=method, resume=step > 1,
                reporter=InterruptAt(step),
            )  # fmt: skip
        assert not (tmp_path / "run" / "metrics.json").exists()
    assert_same_run(go(inputs, tmp_path / "run", method=method, resume=True), whole)


@pytest.mark.slow
def test_ctrl_c_in_the_last_step_finishes(
    inputs: tuple[str, str], undisturbed: RunResult, tmp_path: Path
) -> None:
    assert_same_run(go(inputs, tmp_path / "run", reporter=InterruptAt(STEPS)), undisturbed)


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_requested() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


KILLED = """
import os, signal, sys
from pathlib import Path
import tests.training.test_resume as resume
import deltafit.training.learner as learner

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class KillAt(resume.Silent):
    def __init__(self, at):
        self.at = at
    def step(self, done, loss, rate):
        if loss is not None and done == self.at:
            die()

def before_the_second_checkpoint():
    save, calls = learner.save_checkpoint, []
    def save_or_die(folder, step, *rest):
        if step >= 4:
            die()
        save(folder, step, *rest)
    learner.save_checkpoint = save_or_die

def amid_the_second_checkpoint():
    replace = os.replace
    def replace_or_die(source, target):
        if str(target).endswith("step-00000004"):
            die()
        replace(source, target)
    os.replace = replace_or_die

inputs, folder = sys.argv[1:3], Path(sys.argv[3])
plans = {
    "at step 3": (lambda: None, KillAt(3)),
    "best kept, checkpoint not": (before_the_second_checkpoint, None),
    "half a checkpoint": (amid_the_second_checkpoint, None),
}
resume.torch.set_num_threads(1)
for name, (prepare, reporter) in plans.items():
    if not (child := os.fork()):
        prepare()
        resume.go(inputs, folder / name, reporter=reporter)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, name
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere(inputs: tuple[str, str], undisturbed: RunResult, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        [sys.executable, "-c", KILLED, *inputs, str(tmp_path)], env=environment, check=True
    )
    runs = sorted(tmp_path.iterdir())
    assert len(runs) == 3
    for run in runs:
        assert not (run / "metrics.json").exists()
        assert_same_run(go(inputs, run, resume=True), undisturbed)
        # What the killed process left half written is gone.
        left = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert left == ["best.safetensors", "step-00000006"]


def interrupted(inputs: tuple[str, str], folder: Path, step: int = 3) -> Path:
    with pytest.raises(Interrupted):
        go(inputs, folder, reporter=InterruptAt(step))
    return folder


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    inputs: tuple[str, str], undisturbed: RunResult, tmp_path: Path
) -> None:
    older = interrupted(inputs, tmp_path / "older", 3)
    run = interrupted(inputs, tmp_path / "run", 5)
    shutil.copytree(older / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000003")
    damaged = run / "checkpoints" / "step-00000005" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert_same_run(go(inputs, run, resume=True), undisturbed)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_nothing_but_damaged_checkpoints_is_one_sentence(
    inputs: tuple[str, str], tmp_path: Path, file: str
) -> None:
    run = interrupted(inputs, tmp_path / "run")
    damaged = run / "checkpoints" / "step-00000003" / file
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(DeltafitError, match=r"Delete .*checkpoints and resume"):
        go(inputs, run, resume=True)


def test_resuming_another_run_names_what_differs(inputs: tuple[str, str], tmp_path: Path) -> None:
    run = interrupted(inputs, tmp_path / "run")
    changes: dict[str, dict[str, Any]] = {
        "config.settings.batch_size was 7 there and is 8 now": {
            "settings": replace(SETTINGS, batch_size=8)
        },
        "config.method.rank was 2 there and is 4 now": {"method": LoRA(rank=4)},
        "config.head.head was 'architecture' there and is 'mean' now": {"head": HeadConfig("mean")},
        "config.method.target_modules was None": {"method": LoRA(("query",), rank=2)},
    }
    for sentence, change in changes.items():
        with pytest.raises(UsageError, match=sentence.replace(".", r"\.")):
            go(inputs, run, resume=True, **change)

    table = Path(inputs[1])
    content = table.read_text()
    try:
        table.write_text(content.replace("w30", "w31"))
        with pytest.raises(UsageError, match="holds another run"):
            go(inputs, run, resume=True)
    finally:
        table.write_text(content)


@pytest.mark.slow
def test_the_same_texts_may_lie_elsewhere_by_now(inputs: tuple[str, str], tmp_path: Path) -> None:
    run = interrupted(inputs, tmp_path / "run")
    moved = tmp_path / "moved.csv"
    moved.write_text(Path(inputs[1]).read_text())
    assert go((inputs[0], str(moved)), run, resume=True).metrics["history"]


def test_an_existing_folder_is_refused_and_a_finished_run_given_back(
    inputs: tuple[str, str], undisturbed: RunResult
) -> None:
    with pytest.raises(UsageError, match=r"exists already\. Add --resume"):
        go(inputs, undisturbed.folder)
    stamp = (undisturbed.folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = go(inputs, undisturbed.folder, resume=True)
    assert again.metrics == json.loads((undisturbed.folder / "metrics.json").read_text())
    assert again.metrics["history"] == undisturbed.metrics["history"]
    assert (
        stamp == (undisturbed.folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    )


@pytest.mark.slow
def test_only_a_folder_of_a_run_is_resumed(inputs: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        go(inputs, tmp_path / "file", resume=True)
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        go(inputs, tmp_path, resume=True)
    assert go(inputs, tmp_path / "new", resume=True).metrics["history"]


def test_what_a_killed_save_left_behind_goes_with_the_next(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    parameters = dict(layer.named_parameters())
    optimiser = torch.optim.AdamW(layer.parameters())
    for step in (1, 2):
        for name in (".tmpq1iyp", ".step-00000001.x.part", ".step-00000001.x.old"):
            (tmp_path / name).touch()
        save_checkpoint(tmp_path, step, parameters, optimiser, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_parameter_that_lies_in_memory_by_columns_goes_on_as_it_would() -> None:
    def stepped(parameter: torch.nn.Parameter, optimiser: torch.optim.Optimizer, seed: int) -> None:
        parameter.grad = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(seed)
        ).as_strided_(parameter.shape, parameter.stride())
        optimiser.step()

    one, other = (torch.nn.Parameter(torch.ones(5, 3).T) for _ in range(2))
    first, second = (torch.optim.AdamW([p], lr=0.1, fused=True) for p in (one, other))
    stepped(one, first, 0)
    tensors = {"parameter/w": one.detach().contiguous()} | {
        f"optimiser/{key}/w": value.contiguous() for key, value in first.state[one].items()
    }
    restore(Checkpoint(tensors, {}), {"w": other}, second, {})
    for parameter, optimiser in ((one, first), (other, second)):
        stepped(parameter, optimiser, 1)
    assert torch.equal(one, other)
