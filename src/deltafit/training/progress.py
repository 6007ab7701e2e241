"""Showing how long work goes: a bar in a terminal or notebook, lines in a log file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """What the training loop tells while it works."""

    def start(self, what: str, total: int, done: int) -> None:
        """Begin a piece of work of ``total`` steps, ``done`` of which are behind it."""

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Tell where the work stands."""

    def say(self, sentence: str) -> None:
        """Tell something the person should know."""


class Silent:
    """Tells nothing."""

    def start(self, what: str, total: int, done: int) -> None:
        """Do nothing."""

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Do nothing."""

    def say(self, sentence: str) -> None:
        """Do nothing."""


class ConsoleReporter:
    """Draws a bar where the console can, and otherwise prints a line every ten seconds.

    A notebook can if it has ipywidgets; a terminal can unless it is a dumb one.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = (
            find_spec("ipywidgets") is not None if console.is_jupyter else console.is_interactive
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, detail="", visible=False)
        self._what, self._total, self._first = "", 0, 0
        self._began = self._last_line = 0.0

    @contextmanager
    def shown(self) -> Iterator["ConsoleReporter"]:
        """Show the bar within the block."""
        if not self._live:
            yield self
            return
        with self._bar:
            yield self

    def start(self, what: str, total: int, done: int) -> None:
        """Begin a piece of work."""
        self._what, self._total, self._first = what, total, done
        self._began = self._last_line = time.monotonic()
        if self._live:
            self._bar.reset(
                self._task, total=total, completed=done, description=what, detail="", visible=True
            )

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Show the step, the loss, the speed and the time left."""
        details = [] if loss is None else [f"loss {loss:.4f}"]
        if examples_per_second is not None:
            details.append(f"{examples_per_second:.0f} examples/s")
        if self._live:
            self._bar.update(self._task, completed=done, detail="  ".join(details))
            if done >= self._total:
                self._bar.update(self._task, visible=False)
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and done < self._total:
            return
        self._last_line = now
        passed = now - self._began
        left = passed / max(1, done - self._first) * (self._total - done)
        details.append(f"{passed:.1f} s" if done >= self._total else f"{left:.0f} s left")
        self._print("  ".join((f"{self._what}: {done}/{self._total}", *details)))

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self._print(sentence)

    def _print(self, text: str) -> None:
        try:
            # A log file has no width to fold at.
            self.console.print(text, markup=False, highlight=False, soft_wrap=not self._live)
        except OSError:
            # The reader has gone or the disk is full: no reason to lose hours of training.
            self.console.quiet = True
