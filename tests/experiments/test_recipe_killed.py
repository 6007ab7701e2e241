"""``run`` in processes that are killed, stopped, or share the runs: each is done once."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from deltafit.errors import UsageError
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.recipe_run import run
from tests.experiments.recipe_runs import Listening, killed_at_random, same_rows, started

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_images")]


def test_killed_at_random_the_table_is_that_of_an_undisturbed_run(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    killed_at_random(recipe, tmp_path / "store", seed=1)
    same_rows(run(recipe, tmp_path / "store"), done)
    # Nothing half-written is left of those that were killed.
    assert not list((tmp_path / "store").glob("runs/*/.*"))


def test_two_processes_share_the_runs(recipe: Path, done: Comparison, tmp_path: Path) -> None:
    store = tmp_path / "store"
    other = [started(recipe, store) for _ in range(2)]
    assert [process.wait(timeout=250) for process in other] == [0, 0]
    listening = Listening()
    same_rows(run(recipe, store, reporter=listening), done)
    assert listening.begun == []


def test_a_run_of_another_process_is_waited_for(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    store, listening = tmp_path / "store", Listening()
    process = started(recipe, store)
    while not list(store.glob("runs/*/run.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # it holds the run, and does nothing

    class Continuing(Listening):
        def say(self, sentence: str) -> None:
            super().say(sentence)
            if sentence.startswith("Waiting"):
                process.kill()  # and the run is anybody's

    listening = Continuing()
    same_rows(run(recipe, store, reporter=listening), done)
    process.wait()
    waiting = listening.said.index("Waiting for runs that another process is at.")
    assert len(listening.begun) in (5, 6)
    assert any("(run " in sentence for sentence in listening.said[waiting:])


def workers_of(process: subprocess.Popen[str], store: Path) -> list[psutil.Process]:
    """The workers of a process, once both have a run."""
    while len(list(store.glob("runs/*/run.json"))) < 2:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_workers_share_the_runs_and_what_a_killed_one_leaves_is_done(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    process = started(recipe, tmp_path, processes=2)
    workers = workers_of(process, tmp_path)
    assert len(workers) == 2
    workers[0].kill()
    assert process.wait(timeout=250) == 0
    listening = Listening()
    same_rows(run(recipe, tmp_path, reporter=listening), done)
    assert listening.begun == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_began_them(
    recipe: Path, done: Comparison, tmp_path: Path, how: signal.Signals
) -> None:
    process = started(recipe, tmp_path, processes=2)
    workers = workers_of(process, tmp_path)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2 and not alive
    same_rows(run(recipe, tmp_path), done)


def test_processes_that_make_no_sense_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one process"):
        run(recipe, tmp_path / "store", processes=0)
    with pytest.raises(UsageError, match="Leave --jointly or --processes out"):
        run(recipe, tmp_path / "store", processes=2, jointly=True)
    assert not (tmp_path / "store").exists()
