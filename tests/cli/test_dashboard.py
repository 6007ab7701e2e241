"""What a terminal shows while a recipe's runs are done: every run, the best, the time left."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from deltafit.cli.dashboard import Dashboard
from deltafit.cli.show_standing import drawn
from deltafit.experiments.standing import Overview, RunStanding, Standing
from deltafit.training.noting import Note

LONG = "lora:target_modules=query+key+value,rank={rank},alpha=16, seed 1"


def training(step: int, left: float) -> Note:
    return Note("training", step, 400, 0.3312, left, "here", 1)


RUNS = (
    RunStanding("head", "done", validation=0.875, test=0.8625),
    RunStanding(LONG.format(rank=2), "done", validation=0.9125, test=0.9),
    RunStanding(LONG.format(rank=4), "failed"),
    RunStanding(LONG.format(rank=8), "running", training(120, 72.0)),
    RunStanding("r=16", "running", Note("evaluation before training", 30, 120, None, 3, "h", 1)),
    RunStanding("[red]α=32[/red]", "waiting"),
)
OVERVIEW = Overview(RUNS, "accuracy", RUNS[1], 330.0)


def lines_of(overview: Overview, width: int, height: int = 30) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(drawn("sms-gpt2-sweep-minilm", overview, width, height))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


def test_eighty_columns_show_it_all() -> None:
    lines = lines_of(OVERVIEW, 80)
    assert lines[0] == "sms-gpt2-sweep-minilm"
    assert lines[1].split() == ["run", "state", "loss", "validation", "test", "left"]
    assert lines[2].split() == ["head", "done", "0.8750", "0.8625"]
    # Long names lose what they have in common.
    assert [line[:25].rstrip() for line in lines[3:6]] == [
        f"…rank={rank},alpha=16, seed 1" for rank in (2, 4, 8)
    ]
    assert lines[4].split()[-1] == "failed"
    assert lines[5].split()[-5:] == ["training", "120/400", "0.3312", "1.2", "min"]
    assert lines[6].split() == ["r=16", "evaluation", "25", "%"]
    assert lines[7].split() == ["[red]α=32[/red]", "waiting"], "as it is, and no markup"
    assert lines[8].startswith("Best validation accuracy: 0.9125, lora:")
    assert lines[9:] == ["2 of 6 done, 1 failed; 5.5 min left"]


def test_forty_columns_are_readable() -> None:
    lines = lines_of(OVERVIEW, 40)
    assert lines[1].split() == ["run", "state", "validation"]
    assert lines[2].split() == ["head", "done", "0.8750"]
    assert lines[5].split() == ["…rank=8…,", "seed", "1", "120/400"]
    assert lines[6].split() == ["r=16", "evaluation"]
    assert lines[8].startswith("Best validation") and lines[8].endswith("seed 1")
    assert lines[9] == "2 of 6 done, 1 failed; 5.5 min left"


def test_a_low_terminal_shows_what_goes_on() -> None:
    runs = tuple(
        RunStanding(f"r={number}", "done" if number < 40 else "waiting") for number in range(100)
    )
    runs = (*runs[:50], RunStanding("this one", "running", training(1, 4.0)), *runs[51:])
    lines = lines_of(Overview(runs, "accuracy", None, None), 80, height=17)
    assert len(lines) <= 15
    names = [line.split()[0] for line in lines[2:-2]]
    assert len(names) == 10 and "this" in names and names[0] == "r=45"
    assert lines[-2:] == ["… and 50 waiting, 40 done", "40 of 100 done"]
    nobody = lines_of(Overview(runs[:50], "accuracy", None, None), 80, height=17)
    assert "r=40" in {line.split()[0] for line in nobody}, "what comes next"


class Still(Standing):
    def __init__(self) -> None:
        self.metric = "accuracy"

    def look(self) -> Overview:
        return OVERVIEW


def drive(console: Console) -> str:
    with Dashboard(console, "mine").shown() as reporter:
        reporter.start("frozen features", 4, 0)
        reporter.step(2, None, 30.0)
        reporter.watch(Still())
        reporter.say("[bold]a sentence[/bold]")
        reporter.start("training", 2, 0)
        reporter.step(2, 0.125, 30.0)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_is_as_it_was_afterwards() -> None:
    options: dict[str, Any] = {"force_terminal": True, "color_system": None}
    console = Console(file=io.StringIO(), width=80, height=30, **options)
    raw = drive(console)
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") == 1, "the cursor is shown again"
    assert "mine\n" in raw and "[bold]a sentence[/bold]" in raw
    # What was drawn last is erased: as many lines up as there were.
    after = raw.rpartition("left")[2]
    assert after.count("\x1b[1A\x1b[2K") == len(lines_of(OVERVIEW, 80))
    assert re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\s", "", after) == ""


def test_the_terminal_is_as_it_was_after_ctrl_c() -> None:
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True)
    with pytest.raises(KeyboardInterrupt), Dashboard(console, "mine").shown() as reporter:
        reporter.watch(Still())
        raise KeyboardInterrupt
    raw = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert raw.rstrip().endswith("\x1b[2K") and raw.count("\x1b[?25h") == 1


def test_without_a_terminal_there_are_lines() -> None:
    text = drive(Console(file=io.StringIO(), width=80))
    assert "\x1b" not in text and "mine" not in text
    assert "[bold]a sentence[/bold]\ntraining: 2/2  loss 0.1250  30 examples/s" in text
