"""Showing how long work goes: a bar in a terminal or notebook, lines in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from deltafit.prediction.using import Done

_SECONDS_BETWEEN_LINES = 10.0


def format_rate(per_second: float, unit: str = "examples") -> str:
    """Return 12.3 as "12 examples/s", 3.21 as "3.2 examples/s" and 0.0321 as "0.03 examples/s"."""
    digits = ",.0f" if per_second >= 10 else ".1f" if per_second >= 0.1 else ".1g"
    return f"{per_second:{digits}} {unit}/s"


class Reporter(Protocol):
    """What long work tells while it goes on."""

    def start(self, what: str, total: int | None, done: int) -> None:
        """Begin a piece of work of ``total`` steps, ``done`` of which are behind it.

        A total of None is one that is not known beforehand.
        """

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Tell where the work stands."""

    def say(self, sentence: str) -> None:
        """Tell something the person should know."""


class Silent:
    """Tells nothing."""

    def start(self, what: str, total: int | None, done: int) -> None:
        """Do nothing."""

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Do nothing."""

    def say(self, sentence: str) -> None:
        """Do nothing."""


class Telling(Silent):
    """Tells sentences alone, to another process.

    Args:
        send: sends one.
        gone: what it raises where nobody takes it any more.
    """

    def __init__(self, send: Callable[[str], object], gone: type[Exception]) -> None:
        self._send, self._gone = send, gone

    def say(self, sentence: str) -> None:
        """Send a sentence, if there is somebody."""
        with suppress(self._gone):
            self._send(sentence)


class Labelled(Silent):
    """Says which run a sentence is of; steps are told for all runs at once.

    Args:
        reporter: whom to tell.
        label: of the run.
    """

    def __init__(self, reporter: Reporter, label: str) -> None:
        self._reporter, self._label = reporter, label

    def say(self, sentence: str) -> None:
        """Tell a sentence and whose it is."""
        self._reporter.say(f"{self._label}: {sentence}")


class ConsoleReporter:
    """Draws a bar where the console can, and otherwise prints a line every ten seconds.

    A notebook can if it has ipywidgets; a terminal can unless it is a dumb one.

    Args:
        console: where to; standard error if none is given.
        unit: what the work is counted in.
    """

    def __init__(self, console: Console | None = None, unit: str = "examples") -> None:
        self.console = console = console or Console(stderr=True)
        self._unit = unit
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
        self._what, self._first = "", 0
        self._total: int | None = None
        self._began = self._last_line = 0.0

    @contextmanager
    def shown(self) -> Iterator["ConsoleReporter"]:
        """Show the bar within the block."""
        if not self._live:
            yield self
            return
        with self._bar:
            yield self

    def start(self, what: str, total: int | None, done: int) -> None:
        """Begin a piece of work."""
        self._what, self._total, self._first = what, total, done
        self._began = self._last_line = time.monotonic()
        if self._live:
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, completed=done, detail="")

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Show the step, the loss, the speed and the time left."""
        details = [] if loss is None else [f"loss {loss:.4f}"]
        if examples_per_second is not None:
            details.append(format_rate(examples_per_second, self._unit))
        total = self._total
        if total is None:
            details.insert(0, f"{done:,} {self._unit}")
        finished = total is not None and done >= total
        if self._live:
            detail = "  ".join(details)
            self._bar.update(self._task, completed=done, detail=detail, visible=not finished)
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and not finished:
            return
        self._last_line = now
        passed = now - self._began
        if total is not None:
            left = passed / max(1, done - self._first) * (total - done)
            details.insert(0, f"{done}/{total}")
            details.append(f"{passed:.1f} s" if finished else f"{left:.0f} s left")
        self._print(f"{self._what}: {'  '.join(details)}")

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


class Counted:
    """Tells a reporter how many of the rows are done, and how fast it goes.

    Args:
        reporter: whom to tell.
        what: the work's name.
        total: rows in all; None where that is not known beforehand.
    """

    def __init__(self, reporter: Reporter, what: str, total: int | None) -> None:
        self._reporter, self._done, self._began = reporter, 0, time.perf_counter()
        reporter.start(what, total, 0)

    def __call__(self, rows: int) -> None:
        """Count ``rows`` more."""
        self._done += rows
        speed = self._done / (time.perf_counter() - self._began)
        self._reporter.step(self._done, None, speed)


class Followed:
    """What ``predict`` and ``evaluate`` take as ``progress``: it tells a reporter.

    Args:
        reporter: whom to tell.
        what: the work's name.

    Attributes:
        last: what was told last; None before the first.
    """

    def __init__(self, reporter: Reporter, what: str) -> None:
        self._reporter, self._what, self._began = reporter, what, 0.0
        self.last: Done | None = None

    def __call__(self, done: "Done") -> None:
        """Tell how far the work has come, and how fast it is."""
        now = time.monotonic()
        if self.last is None:
            self._began = now
            self._reporter.start(self._what, done.total, done.texts)
        else:
            seconds = max(now - self._began, 1e-3)  # a clock may be coarse
            self._reporter.step(done.texts, None, done.texts / seconds)
        self.last = done
