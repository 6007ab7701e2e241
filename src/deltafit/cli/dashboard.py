"""What a terminal shows while the runs of a recipe are done."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live

from deltafit.cli.show_standing import drawn
from deltafit.experiments.standing import Overview, Standing
from deltafit.training.progress import ConsoleReporter

_SECONDS_BETWEEN_LOOKS = 0.5


class Dashboard(ConsoleReporter):
    """Shows in a terminal where every run stands; tells the rest as `ConsoleReporter` does.

    Without a terminal to draw on, in a log file or a notebook, it is a `ConsoleReporter`.

    Args:
        console: where to.
        title: the experiment's name.
    """

    def __init__(self, console: Console, title: str) -> None:
        super().__init__(console)
        self._title = title
        self._standing: Standing | None = None
        self._seen: Overview | None = None
        self._looked = -math.inf

    def watch(self, standing: Standing) -> None:
        """Show these runs from now on."""
        self._standing = standing

    @contextmanager
    def shown(self) -> Iterator["Dashboard"]:
        """Show the runs within the block; the terminal is as it was behind it."""
        if not self._live or self.console.is_jupyter:
            with super().shown():
                yield self
            return
        with Live(
            get_renderable=self._drawn, console=self.console, transient=True,
            vertical_overflow="crop",
        ):  # fmt: skip
            yield self

    def _drawn(self) -> RenderableType:
        bar = self._bar.get_renderable()
        if self._standing is None:
            return bar
        if time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._seen, self._looked = self._standing.look(), time.monotonic()
        assert self._seen is not None
        size = self.console.size
        table = drawn(self._title, self._seen, size.width, size.height)
        # What is done for all of them; that of one run stands in its row.
        return table if self._seen.count("running") or self._seen.trials else Group(table, bar)
