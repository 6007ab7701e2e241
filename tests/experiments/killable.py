"""The ``run`` of a recipe in a process that is killed, at once ready to be begun again.

A fork server imports all libraries once; a killed process is begun again in no time, and twenty are
a matter of seconds. Import as ``from tests.experiments.killable import Killable``.
"""

import multiprocessing
import os
import random
import time
from pathlib import Path

from deltafit.experiments import recipe_run, report
from deltafit.training.progress import Silent


class Marking(Silent):
    """Leaves a line in a file for all that is begun and for every training step, at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _mark(self, text: str) -> None:
        os.write(self._file, f"{text}\n".encode())

    def start(self, what: str, total: int | None, done: int) -> None:
        self._mark(what)

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        if loss is not None:
            self._mark(f"step {done}")

    def say(self, sentence: str) -> None:
        self._mark(sentence)


def do(recipe: Path, store: Path, overrides: list[str], marks: Path) -> None:
    report.save_png = lambda figure, path: path.touch()
    # It loads the model each time, and writes nothing that could be left half written.
    recipe_run.examine = lambda *words, **named: []
    recipe_run.run(recipe, store, overrides=overrides, reporter=Marking(marks))


class Killable:
    """The same command again and again.

    Args:
        recipe: of the command.
        store: the same.
        overrides: the same.
        marks: a file for what its processes did.
    """

    def __init__(self, recipe: Path, store: Path, overrides: list[str], marks: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._words = (recipe, store, overrides, marks)
        self._marks = marks

    def finish(self) -> None:
        """Let it come to its end."""
        process = self._context.Process(target=do, args=self._words)
        process.start()
        process.join()
        assert process.exitcode == 0

    def killed(self, chosen: random.Random, seconds: float, *, training: bool) -> str:
        """Kill it at a random moment; return the last that it did.

        Args:
            chosen: draws the moment.
            seconds: within which it is killed.
            training: whether these begin with its first step; with its first sign of life if not.
        """
        self._marks.unlink(missing_ok=True)
        process = self._context.Process(target=do, args=self._words)
        process.start()
        while process.is_alive() and not any(
            mark.startswith("step") or not training for mark in self.marks()
        ):
            time.sleep(0.005)
        process.join(chosen.uniform(0, seconds))
        assert process.is_alive(), "it has to be longer"
        process.kill()
        process.join()
        return self.marks()[-1]

    def marks(self) -> list[str]:
        """What the last process did."""
        if not self._marks.exists():
            return []
        return self._marks.read_text(encoding="utf-8").splitlines()
