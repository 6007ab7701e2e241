"""``run`` in processes that are killed, stopped, or share the runs: each is done once."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from deltafit.errors import UsageError
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.recipe_run import run
from tests.experiments.killable import Killable
from tests.experiments.recipe_runs import Listening, same_report, same_rows, started

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_images")]


# Runs of seconds, that are evaluated, and so leave a checkpoint, every tenth of one.
LONG = ["name=tiny", "seeds=[0]", "settings.epochs=120", "settings.evaluate_every=20"]


def progress_of(store: Path) -> tuple[int, int]:
    """Runs that are finished, and the steps of the others' checkpoints."""
    finished = list(store.glob("runs/*/metrics.json"))
    steps = [int(p.name.partition("-")[2]) for p in store.glob("runs/*/checkpoints/step-????????")
             if not (p.parents[1] / "metrics.json").is_file()]  # fmt: skip
    return len(finished), max(steps, default=0)


def test_killed_twenty_times_at_random_the_report_is_that_of_an_undisturbed_run(
    recipe: Path, tmp_path: Path
) -> None:
    undisturbed = Killable(recipe, tmp_path / "alone", LONG, tmp_path / "marks")
    undisturbed.finish()
    disturbed = Killable(recipe, tmp_path / "store", LONG, tmp_path / "marks")
    chosen, last, stood = random.Random(1), [], [(0, 0)]
    for number in range(20):
        last.append(disturbed.killed(chosen, 0.6, training=number % 4 > 0))
        stood.append(progress_of(tmp_path / "store"))
    disturbed.finish()
    assert sum(mark.startswith("step ") for mark in last) >= 10, last
    assert stood == sorted(stood), "nothing that was done is lost"
    assert len({*stood}) >= 10, "and most processes got on"
    same_report(tmp_path / "store" / "tiny", tmp_path / "alone" / "tiny")
    # Nothing half-written is left of those that were killed.
    assert not list((tmp_path / "store").glob("runs/*/.*"))


def test_killed_on_minilm_the_report_is_that_of_an_undisturbed_run(
    recipe: Path, minilm_path: Path, tmp_path: Path
) -> None:
    changes = ["name=tiny", f"model={minilm_path}", "seeds=[0]"]
    changes += ["settings.epochs=6", "settings.evaluate_every=5", "data.limit=24"]
    undisturbed = Killable(recipe, tmp_path / "alone", changes, tmp_path / "marks")
    undisturbed.finish()
    disturbed = Killable(recipe, tmp_path / "store", changes, tmp_path / "marks")
    disturbed.killed(random.Random(2), 2.0, training=True)
    finished, steps = progress_of(tmp_path / "store")
    assert finished < 3 and finished + steps > 0
    disturbed.finish()
    same_report(tmp_path / "store" / "tiny", tmp_path / "alone" / "tiny")


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
