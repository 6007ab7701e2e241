"""Where a run's work stands, noted in its folder for whoever looks on while it is done."""

import json
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from deltafit.training.accelerator import processes
from deltafit.training.progress import Reporter

PROGRESS_FILE = "progress.json"
_HALF_WRITTEN = f".{PROGRESS_FILE}.part"
NOTE_FILES = (PROGRESS_FILE, _HALF_WRITTEN)
_SECONDS_BETWEEN_NOTES = 0.5


@dataclass(frozen=True)
class Note:
    """Where a run's work stands.

    Attributes:
        what: is being done, such as ``"training"``.
        step: of it.
        of: how many steps it has; None if that is not known.
        loss: of the last step, in training.
        seconds_left: of it; None before the first step.
        host: the machine it is done on.
        process: which does it there.
    """

    what: str
    step: int
    of: int | None
    loss: float | None
    seconds_left: float | None
    host: str
    process: int

    @property
    def training_seconds_left(self) -> float | None:
        """The same of training alone; None before its first step."""
        return self.seconds_left if self.what == "training" else None

    @property
    def trained(self) -> bool:
        """Whether training is over, and what came of it is judged."""
        return self.what.endswith("after training")


class Noting:
    """Tells a reporter, and notes the same in a run's folder, twice a second at most.

    Nothing is gone on with by these notes, so one that cannot be written is left out. Of processes
    launched together the main one notes.

    Args:
        reporter: whom to tell.
        folder: the run's.
    """

    def __init__(self, reporter: Reporter, folder: Path) -> None:
        self._reporter, self._folder = reporter, folder
        self._what, self._first = "", 0
        self._total: int | None = None
        self._began = self._noted = -math.inf

    def start(self, what: str, total: int | None, done: int) -> None:
        """Begin a piece of work."""
        self._reporter.start(what, total, done)
        self._what, self._total, self._first = what, total, done
        self._began = time.monotonic()
        self._note(done, None)

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        """Tell and note where the work stands."""
        self._reporter.step(done, loss, examples_per_second)
        if time.monotonic() - self._noted >= _SECONDS_BETWEEN_NOTES:
            self._note(done, loss)

    def say(self, sentence: str) -> None:
        """Tell a sentence."""
        self._reporter.say(sentence)

    def _note(self, done: int, loss: float | None) -> None:
        if not processes().is_main_process:
            return
        self._noted = time.monotonic()
        left = None
        if self._total is not None and done > self._first:
            left = (self._noted - self._began) / (done - self._first) * (self._total - done)
        host, process = socket.gethostname(), os.getpid()
        note = Note(self._what, done, self._total, loss, left, host, process)
        path = self._folder / _HALF_WRITTEN
        with suppress(OSError):
            # Unlike what a run leaves it is not flushed: a machine that goes down takes it along.
            # On Windows it cannot take the place of a note that somebody is reading.
            path.write_text(json.dumps(asdict(note)), encoding="utf-8")
            path.replace(self._folder / PROGRESS_FILE)


def forget_notes(folder: Path) -> None:
    """Remove what was noted in a run's folder, as far as nobody is reading it at the moment."""
    for name in NOTE_FILES:
        with suppress(OSError):
            (folder / name).unlink()


def noted(folder: Path) -> Note | None:
    """Return where the work on a run stands; None if nobody is at it, as far as can be seen.

    The process of another machine cannot be, so that its last note is taken at its word.
    """
    with suppress(OSError, ValueError, TypeError):
        note = Note(**json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
        if note.host != socket.gethostname() or psutil.pid_exists(note.process):
            return note
    return None
