"""The command in processes that ``accelerate launch`` starts: one speaks, and none hangs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deltafit.cli.speaking import launched_together, telling
from deltafit.errors import UsageError
from deltafit.experiments.recipe_run import run
from deltafit.files import read_json
from deltafit.training.accelerator import processes
from tests.cli.commands import Tiny, done
from tests.experiments.recipes import tiny_recipe
from tests.training.tiny_runs import save_model, trained_alike

# Without GPUs too: with --cpu the launcher starts others through mpirun alone.
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
    *("--num_processes", "2", "--main_process_port", "0"),
)

# One of the processes fails at the third training step of all.
FAILING = """
import os, signal, sys
from deltafit.training.loop import TrainingLoop

step, steps = TrainingLoop._step, 0
rank, how = sys.argv[1:3]
del sys.argv[1:3]

def failing(loop):
    global steps
    steps += 1
    if steps == 3 and os.environ["RANK"] == rank:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError
    step(loop)

TrainingLoop._step = failing
from deltafit.__main__ import main
main()
"""


def launched(*words: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a module or script in two processes, as ``accelerate launch`` does."""
    path = os.pathsep.join([str(Path("src").resolve()), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": path, "HF_HOME": str(folder),
    }  # fmt: skip
    return subprocess.run(
        [*LAUNCH, *map(str, words)],
        env=environment, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip


def sentences(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("deltafit: ")]


@pytest.mark.slow
def test_train_gives_what_one_process_gives_with_the_same_batch_in_all(
    tiny: Tiny, tmp_path: Path
) -> None:
    words = ["--method", "lora:rank=2", "--lr", "1e-3", "--label-smoothing", "0.1"]
    # Without dropout, of which each process would drop elements of its own.
    tiny = replace(tiny, model=save_model(tmp_path / "plain"))
    made = launched(
        "-m", "deltafit", "train", *tiny.start(tmp_path / "two"), *words, folder=tmp_path
    )
    assert made.returncode == 0, made.stderr[-3000:]
    assert made.stdout.count("Before and after training") == 1
    done("train", *tiny.start(tmp_path / "one"), *words)
    trained_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_recipe_s_runs_are_done_together_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path)
    model = save_model(tmp_path / "plain")  # each process would drop elements of its own
    words = ["--set", "name=tiny", "--set", "seeds=[0]", "--set", f"model={model}"]
    # The second row diverges in both processes, which is a run's end and not the command's.
    words += ["--set", "runs=[{method: head}, {method: full, settings: {learning_rate: 1e30}}, "
              "{method: lora:rank=2}]"]  # fmt: skip
    store = tmp_path / "two"
    said = launched("-m", "deltafit", "run", recipe, "--output", store, *words, folder=tmp_path)
    assert said.returncode == 0, said.stderr[-3000:]
    assert said.stdout.count("Report: ") == 1 and said.stderr.count("(run 3 of 3)") == 1
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    alone = run(recipe, tmp_path / "one", overrides=words[1::2])
    rows = read_json(store / "tiny" / "comparison.json")["rows"]
    found = list(store.glob("runs/*/metrics.json"))
    assert len(found) == 2 and len(list(store.glob("runs/*/failure.json"))) == 1
    for path in found:
        assert read_json(path)["environment"]["processes"] == 2
    for one, other in zip(rows, alone.rows, strict=True):
        for key in ("name", "before", "after", "macro_f1", "trainable", "failure"):
            assert one.get(key) == other.get(key), (one["name"], key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "sentence"),
    [
        (0, "failed", "Out of memory"),
        (1, "failed", "Out of memory"),
        (1, "killed", "Another of the processes that were launched together has ended"),
    ],
)
def test_what_fails_in_one_process_ends_all_with_one_sentence(
    tmp_path: Path, rank: int, how: str, sentence: str
) -> None:
    recipe, script = tiny_recipe(tmp_path), tmp_path / "failing.py"
    script.write_text(FAILING)
    words = ["run", recipe, "--output", tmp_path / "store"]
    words += ["--set", "seeds=[0]", "--set", "runs=[{method: head}]"]
    said = launched(script, rank, how, *words, folder=tmp_path)
    assert said.returncode != 0
    (only,) = sentences(said.stderr)
    assert sentence in only, said.stderr
    # What remains of tracebacks is the launcher's own.
    assert "deltafit/cli" not in said.stderr
    assert not list((tmp_path / "store").glob("runs/*/metrics.json"))


def test_a_launch_of_one_process_where_several_were_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--multi_gpu in place of --cpu"):
        processes()
    # A job's own port, which the launcher hands on.
    monkeypatch.setattr(psutil.Process, "environ", lambda self: dict(os.environ))
    assert processes().num_processes == 1


@pytest.mark.slow
@pytest.mark.parametrize(("count", "refused"), [(1, False), (2, True)])
def test_a_launch_within_a_job_that_has_a_port(tmp_path: Path, count: int, refused: bool) -> None:
    words = ["--cpu", "--num_processes", str(count), "--num_machines", "1"]
    program = "from deltafit.training.accelerator import processes; processes()"
    script = tmp_path / "script.py"
    script.write_text(program)
    path = os.pathsep.join([str(Path("src").resolve()), os.environ.get("PYTHONPATH", "")])
    of_job = {"MASTER_PORT": "29511", "MASTER_ADDR": "127.0.0.1", "SLURM_JOB_ID": "7"}
    environment = os.environ | of_job | {"PYTHONPATH": path, "HF_HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words, str(script)],
        env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (said.returncode != 0, "started one process" in said.stderr) == (refused, refused), (
        said.stderr[-2000:]
    )


@pytest.mark.parametrize(("rank", "tells"), [("0", True), ("1", False)])
def test_where_processes_cannot_reach_one_another_the_first_one_tells(
    monkeypatch: pytest.MonkeyPatch, rank: str, tells: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert launched_together()
    with telling() as ours:
        assert ours == tells
