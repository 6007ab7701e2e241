"""A tracker of Accelerate's that decides nothing: its run goes on without it where it fails."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.tracking import GeneralTracker

from deltafit.training.progress import Reporter


class GuardedTracker:
    """A tracker that is left alone after its first exception, which is told in a sentence.

    Each kind raises its own: nobody logged in, no connection, no room.

    Args:
        name: of the tracker.
        run: what it follows, in words.
        reporter: told what it failed with.

    Attributes:
        works: whether nothing has gone wrong so far.
        concluded: whether it was given the run's last figures.
    """

    def __init__(self, name: str, run: str, reporter: Reporter) -> None:
        self.name, self.works, self.concluded = name, True, False
        self._run, self._reporter = run, reporter
        self._tracker: GeneralTracker | None = None

    def start(self, make: Callable[[], GeneralTracker]) -> GeneralTracker:
        """Make and start the tracker; within ``guarded``."""
        tracker = make()
        tracker.start()
        self._tracker = tracker
        return tracker

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers at a step, as Accelerate asks its trackers to."""
        if self._tracker is not None and self.works:
            with self.guarded():
                self._tracker.log(dict(values), step=step)

    def conclude(self, values: Mapping[str, Any], step: int) -> None:
        """Log the last numbers of a run."""
        self.log(values, step)
        self.concluded = self.works

    def finish(self) -> None:
        """Finish the tracker if it was started, though it may have failed since."""
        if self._tracker is not None:
            with self.guarded():
                self._tracker.finish()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Tell the first exception of all such blocks, and go on behind the block after any."""
        try:
            yield
        except Exception as error:
            if self.works:
                lines = str(error).strip().splitlines()
                what = lines[0] if lines else type(error).__name__
                self._reporter.say(
                    f"The tracker {self.name} does not get all of {self._run}: {what}"
                )
            self.works = False
