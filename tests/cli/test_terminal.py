"""What a terminal of 80 columns, a pipe, a log file and a notebook get to see."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from deltafit.cli import main
from deltafit.cli.running import explained, json_line
from deltafit.cli.show import show_comparison, show_metrics, show_run
from deltafit.cli.show_inspection import show_inspection
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.report import verdict
from deltafit.files import read_json, write_folder_atomically
from deltafit.prediction.inspecting import inspect
from deltafit.prediction.using import Done, evaluate
from deltafit.training import progress
from deltafit.training.progress import ConsoleReporter, Followed, format_rate
from deltafit.training.run import RunResult
from tests.cli.commands import WIDTH, Tiny, done
from tests.experiments.rows import example
from tests.training.tiny_runs import save_model


def terminal(**options: Any) -> Console:
    settings = {"force_terminal": True, "width": WIDTH, "color_system": None} | options
    return Console(file=io.StringIO(), **settings)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert "…" not in text
    return text


def test_nothing_is_cut_and_no_line_is_too_long(tiny: Tiny, tmp_path: Path) -> None:
    console = terminal()
    show_run(console, RunResult(tiny.run, read_json(tiny.run / "metrics.json")))
    show_metrics(console, evaluate(tiny.run, tiny.test))
    show_inspection(console, inspect(tiny.run))
    for architecture in ("deberta-v2", "gpt_neox"):  # long names of modules
        show_inspection(console, inspect(save_model(tmp_path / architecture, architecture)))
    rows = example()
    facts = {"data": {"notes": ["2 of 20 test texts also stand in training " + "x" * 40]}}
    show_comparison(console, Comparison(Path("runs/out"), rows, verdict(rows), facts))
    text = shown(console)
    assert max(map(len, text.splitlines())) <= WIDTH
    for word in ("query_key_value", "post_attention_layernorm", "DisentangledSelfAttention"):
        assert word in text, word


def test_sentences_are_not_folded_in_a_pipe(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / ("long" * 30)
    lines = done("merge", tiny.run, "--output", output).splitlines()
    assert str(output) in lines[0] and lines[0].endswith(".")


def test_many_classes_are_not_all_listed() -> None:
    figures = {"precision": 0.5, "recall": 0.5, "support": 3}
    names = [f"[class] {number}" for number in range(77)]
    metrics = {
        **dict.fromkeys(("accuracy", "macro_f1", "weighted_f1", "log_loss"), 0.5),
        **{"calibration_error": 0.1, "accuracy_interval": [0.4, 0.6], "source": "t.csv"},
        **{"count": 231, "truncated": 1, "max_length": 16, "notes": ["t.csv: read oddly."]},
        "per_class": {name: figures | {"f1": i / 77} for i, name in enumerate(names)},
    }
    console = terminal()
    show_metrics(console, metrics)
    text = shown(console)
    listed = re.findall(r"^(\[class\] \d+) ", text, flags=re.MULTILINE)
    assert listed == names[:20] and "57 better classes are in --json" in text
    assert "1 text (0.4 %) was cut to 16 tokens." in text and "t.csv: read oddly." in text


def test_a_log_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = terminal(force_terminal=False)
    with ConsoleReporter(console).shown() as reporter:
        reporter.start("training", 40, 10)  # ten are done already: resumed
        for done_steps in range(11, 41):
            clock[0] += 3
            reporter.step(done_steps, 0.5, 12.4)
        reporter.say("[bold]as it is[/bold] " + "x" * 100)
        reporter.start("evaluation", 1, 0)
        reporter.step(1, None, None)
    lines = shown(console).splitlines()
    assert lines[0] == "training: 14/40  loss 0.5000  12 examples/s  78 s left"
    assert [line.split()[1] for line in lines[:8]] == [f"{n}/40" for n in (*range(14, 41, 4), 40)]
    assert lines[7].endswith("examples/s  90.0 s")
    assert lines[8] == "[bold]as it is[/bold] " + "x" * 100
    assert lines[9] == "evaluation: 1/1  0.0 s"
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_work_of_unknown_length_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    logged, seen = terminal(force_terminal=False), terminal(width=100)
    with (
        ConsoleReporter(logged, "texts").shown() as log,
        ConsoleReporter(seen, "texts").shown() as live,
    ):
        log.start("something shorter", 10, 0)  # its total is no total of the next
        live.start("something shorter", 10, 0)
        following = [Followed(log, "prediction"), Followed(live, "prediction")]
        for texts in range(0, 5001, 1000):
            for follow in following:
                follow(Done(texts, None, 3, 16))
            clock[0] += 7
    lines = shown(logged).splitlines()
    assert lines == [
        "prediction: 2,000 texts  143 texts/s",
        "prediction: 4,000 texts  143 texts/s",
    ]
    text = shown(seen)
    _, _, bar = text.partition("prediction")
    assert "5,000 texts  143 texts/s" in bar and "%" not in bar and "--:--" not in bar
    assert following[0].last == Done(5000, None, 3, 16)


def test_rates_below_ten_keep_a_decimal() -> None:
    rates = {1234.5: "1,234", 12.4: "12", 9.96: "10.0", 3.21: "3.2", 0.44: "0.4", 0.0321: "0.03"}
    for rate, text in rates.items():
        assert format_rate(rate) == f"{text} examples/s"
    console = terminal(force_terminal=False)
    with ConsoleReporter(console).shown() as reporter:
        reporter.start("training", 2, 0)
        reporter.step(2, 0.5, 0.25)
    assert "loss 0.5000  0.2 examples/s" in shown(console)


def drive(console: Console) -> str:
    with ConsoleReporter(console).shown() as reporter:
        reporter.start("training", 2, 0)
        reporter.step(1, 0.25, 30.0)
        reporter.say("a sentence")
        reporter.step(2, 0.125, 30.0)
        reporter.start("evaluation", 1, 0)
        reporter.step(1, None, None)
    return shown(console)


def test_a_terminal_gets_a_bar_that_goes_again() -> None:
    console = terminal(width=100)
    text = drive(console)
    assert "a sentence" in text and "training: 1/2" not in text
    raw = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "\x1b[" in raw


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drive(terminal(_environ={"TERM": "dumb"}))
    assert "training: 2/2  loss 0.1250  30 examples/s" in text


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook(monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
    """rich draws in notebooks with IPython; a bar needs ipywidgets, and without it lines do."""
    seen: list[str] = []

    def display(segments: Any, text: str) -> None:
        seen.append(text)

    monkeypatch.setattr("rich.jupyter.display", display)
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets else None)
    console = terminal(force_terminal=None, force_jupyter=True)
    assert console.is_jupyter
    with pytest.warns(UserWarning, match="ipywidgets") if widgets else _no_warning():
        drive(console)  # none is installed here, which rich says
    text = "".join(seen)
    assert "a sentence" in text
    assert ("training: 2/2" in text) == (not widgets)


class _no_warning:  # noqa: N801  # stands beside pytest.warns
    def __enter__(self) -> None:
        import warnings

        self._context = warnings.catch_warnings()
        self._context.__enter__()
        warnings.simplefilter("error")

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)


def test_a_reader_that_has_gone_does_not_end_training() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    for console in (Piped(file=Gone()), Console(file=_Full())):
        with ConsoleReporter(console).shown() as reporter:
            reporter.say("one")
            reporter.start("training", 1, 0)
            reporter.step(1, 0.5, 1.0)


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "ascii", "latin-1", "cp1252"])
def test_json_fits_the_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    import json

    content = {"text": "映画 é 🎬"}
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    line = json_line(content)
    assert json.loads(line.encode(encoding).decode(encoding)) == content
    assert ("映" in line) == (encoding.lower().startswith("utf"))


def test_a_terminated_command_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `kill` and a system that shuts down ask; Ctrl-C does the same."""

    def command() -> None:
        with explained(), write_folder_atomically(tmp_path / "merged") as folder:
            (folder / "half").write_text("written")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr("deltafit.cli.app", command)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as stopped:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.exit_code == 130
    assert not list(tmp_path.iterdir())


def test_a_command_that_is_ending_is_not_terminated_before_it_has_said_why() -> None:
    """As a launcher does to all others when one process fails."""
    program = """
import os, signal
import deltafit.cli as cli
from deltafit.cli import running
from deltafit.errors import DeltafitError

loud = running.console

def console(**words):
    os.kill(os.getpid(), signal.SIGTERM)  # while the sentence is being said
    return loud(**words)

def command():
    with running.explained(), running.explained():
        raise DeltafitError("The reason.")

running.console = console
cli.app = command
try:
    cli.main()
finally:
    os.kill(os.getpid(), signal.SIGTERM)  # at the interpreter's end
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert said.stderr.splitlines()[:1] == ["deltafit: The reason."], said.stderr
    assert said.returncode == -signal.SIGTERM and "Stopped" not in said.stderr
