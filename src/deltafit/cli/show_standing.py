"""How the runs of a recipe look in a terminal while they are done."""

from collections.abc import Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from deltafit.experiments.standing import Overview, RunStanding
from deltafit.experiments.tables import format_seconds
from deltafit.training.noting import Note

NARROW = 64
"""Columns below which only what matters most is shown."""

_STYLES = {"waiting": "dim", "running": "cyan", "done": "green", "failed": "red"}
_GAP = 2  # columns
_STATE = 16  # columns
_LEAST = {"state": _STATE, "loss": 6, "test": 6, "left": 7}  # columns, so that little moves
_BESIDE_ROWS = 7  # lines: title, header, what is not shown, best, time left, a bar, the cursor's


def drawn(title: str, overview: Overview, width: int, height: int) -> RenderableType:
    """Return the runs as a table that fits a terminal, the best of them and the time left.

    Args:
        title: the experiment's name.
        overview: where its runs stand; trials of a search that go on come first.
        width: of the terminal, in columns.
        height: of the terminal, in lines; runs far from those that go on are left out.
    """
    every = (*overview.trials, *overview.runs)
    rows = _shown(every, max(1, height - _BESIDE_ROWS))
    columns = ["state", "validation"] if width < NARROW else [
        "state", "loss", "validation", "test", "left",
    ]  # fmt: skip
    cells = [_cells(run, short=width < NARROW) for run in rows]
    least = {} if width < NARROW else _LEAST
    widths = {
        column: max(len(column), least.get(column, 0), *(len(each[column]) for each in cells))
        for column in columns
    }
    room = width - sum(widths.values()) - _GAP * len(columns)
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("run", no_wrap=True)
    for column in columns:
        justify: JustifyMethod = "left" if column == "state" else "right"
        table.add_column(column, justify=justify, no_wrap=True, width=widths[column])
    shared = _shared_beginning([run.name for run in every if len(run.name) > room])
    for run, each in zip(rows, cells, strict=True):
        name = run.name if len(run.name) <= room else f"{'…' * bool(shared)}{run.name[shared:]}"
        row = [Text(_middle_cut(name, room)), *(Text(each[column]) for column in columns)]
        table.add_row(*row, style=_STYLES[run.state])
    below = [Text(_middle_cut(line, width)) for line in _below(overview, rows)]
    return Group(Text(_middle_cut(title, width)), table, *below)


def _shown(runs: Sequence[RunStanding], most: int) -> Sequence[RunStanding]:
    """Return as many runs as there is room for: those that go on, and their neighbours."""
    if len(runs) <= most:
        return runs
    centres = [index for index, run in enumerate(runs) if run.state == "running"]
    if not centres:
        centres = [i for i, run in enumerate(runs) if run.state == "waiting"][:1] or [len(runs)]
    order = sorted(range(len(runs)), key=lambda i: (min(abs(i - c) for c in centres), i))
    return [runs[index] for index in sorted(order[:most])]


def _cells(run: RunStanding, *, short: bool) -> dict[str, str]:
    note = run.note
    left = None if note is None else note.training_seconds_left
    return {
        "state": run.state if note is None else _at(note, short=short),
        "loss": "" if note is None else _figure(note.loss),
        "validation": _figure(run.validation),
        "test": _figure(run.test),
        "left": "" if left is None else format_seconds(left),
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _at(note: Note, *, short: bool) -> str:
    """Return "training 12/40", and as a share what is counted in rows: "evaluation 30 %"."""
    if note.what == "training":
        return f"{note.step}/{note.of}" if short else f"training {note.step}/{note.of}"
    what = note.what.split()[0]
    if short:
        return what
    longer = " ".join(note.what.split()[:2])
    share = f"{what} {100 * note.step // note.of} %" if note.of else what
    return longer if len(longer) <= _STATE else share


def _below(overview: Overview, shown: Sequence[RunStanding]) -> list[str]:
    """Return the lines below the table."""
    lines = []
    hidden = [run.state for run in overview.runs if run not in shown]
    if hidden:
        counts = [f"{hidden.count(state)} {state}" for state in _STYLES if state in hidden]
        lines.append(f"… and {', '.join(counts)}")
    best = overview.best
    if best is not None:
        lines.append(f"Best validation {overview.metric}: {_figure(best.validation)}, {best.name}")
    failed = f", {overview.count('failed')} failed" if overview.count("failed") else ""
    left = overview.seconds_left
    time = f"; {format_seconds(left)} left" if left else ""
    lines.append(f"{overview.count('done')} of {len(overview.runs)} done{failed}{time}")
    return lines


def _shared_beginning(names: Sequence[str]) -> int:
    """Return how many characters, of whole settings, names have in common before they differ."""
    if len(names) < 2:
        return 0
    first, last = min(names), max(names)  # whatever these two share, all do
    alike = 0
    while alike < min(len(first), len(last)) and first[alike] == last[alike]:
        alike += 1
    return 1 + max(first.rfind(sign, 0, alike) for sign in ",:")


def _middle_cut(text: str, width: int) -> str:
    """Return a text without its middle where it is too long."""
    if len(text) <= width:
        return text
    front = max(1, (width - 1) // 2)
    return f"{text[:front]}…{text[len(text) - max(1, width - 1 - front) :]}"
