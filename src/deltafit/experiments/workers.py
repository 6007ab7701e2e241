"""The runs of a recipe in several processes of this machine, each of which takes what is free."""

import multiprocessing
import os
import sys
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, get_args

import torch

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.recipe import Recipe
from deltafit.experiments.recipe_start import prepared
from deltafit.experiments.running import SharedFeatures, do_runs
from deltafit.experiments.tuning import tuned
from deltafit.training.accelerator import processes as launched
from deltafit.training.own_process import end_with_parent
from deltafit.training.progress import Reporter, Telling

Engine = Literal["here", "ray"]
"""Where runs are done: on this machine, or on a Ray cluster."""


def check_place(engine: Engine, *, processes: int, jointly: bool) -> None:
    """Raise a UsageError unless runs can be done there, by so many processes."""
    if engine not in get_args(Engine):
        raise UsageError(f"--engine is one of {', '.join(get_args(Engine))}; got {engine!r}.")
    if processes < 1:
        raise UsageError(f"It takes at least one process to do runs; got {processes}.")
    if processes > 1 and jointly:
        raise UsageError(
            "Runs are trained jointly in one process. Leave --jointly or --processes out."
        )
    if engine == "ray" and jointly:
        raise UsageError(
            "Runs are trained jointly in one process of this machine. Leave --jointly or --engine "
            "ray out."
        )
    if engine == "ray" and processes > 1:
        raise UsageError(
            "--processes counts processes of this machine; on a Ray cluster as many runs go on as "
            "it has room for. Leave one of the two out."
        )
    if engine == "ray" and find_spec("ray") is None:
        raise UsageError("Ray is not installed. Install it with pip install 'deltafit[ray]'.")
    launched_together = launched().num_processes
    if launched_together > 1 and (engine == "ray" or processes > 1):
        raise UsageError(
            f"{launched_together} processes were launched together, and do each run together. "
            "Start one process, or leave --engine and --processes out."
        )


def do_in_processes(count: int, recipe: Recipe, root: Path, reporter: Reporter) -> None:
    """Do the runs of a recipe that no process is at in new processes, and wait for those.

    What a process fails at, or does not end since it is killed, is left undone.

    Args:
        count: of the processes.
        recipe: its runs.
        root: of the store.
        reporter: told what they say.

    Raises:
        KeyboardInterrupt: the person asked to stop; runs that were begun have checkpoints.
    """
    # Not forked: threads of torch's would be held for ever by nobody.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // count)
    workers, speaking = [], {}
    for number in range(1, count + 1):
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(recipe, root, threads, there))
        worker.start()
        there.close()  # or it would never be seen to end
        workers.append(worker)
        speaking[here] = number
    try:
        while speaking:
            for connection in wait([*speaking]):
                assert isinstance(connection, Connection)
                try:
                    reporter.say(f"[{speaking[connection]}] {connection.recv()}")
                except (EOFError, OSError):
                    del speaking[connection]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        for worker in workers:
            worker.join()


def _work(recipe: Recipe, root: Path, threads: int, connection: Connection) -> None:
    """Do one run after another that is not finished and that no other process is at."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the first process alone, which passes it on once
    end_with_parent()  # at the end of a step, with a checkpoint
    torch.set_num_threads(threads)
    reporter = Telling(connection.send, OSError)
    try:
        made = prepared(recipe, root, ())
        features = SharedFeatures(recipe.model, made.splits, reporter)
        found = tuned(made, features, reporter, wait=False)
        do_runs(
            found.experiment.runs(), made.splits, made.store, features, reporter, wait=False
        )  # fmt: skip
    except DeltafitError as error:
        reporter.say(str(error))
        sys.exit(1)
