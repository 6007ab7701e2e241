"""The command in processes of its own: Ctrl-C, pipes, encodings. Few, as each takes seconds."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deltafit.files import read_json, read_tensors
from tests.cli.commands import Tiny, done

COMMAND = [
    *(sys.executable, "-c"),
    "import sys; from deltafit.cli import main; sys.argv[0] = 'deltafit'; main()",
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


def run(*words: object, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        env=ENVIRONMENT | environment,
        capture_output=True,
        check=False,
        timeout=200,
    )


def interrupted(words: list[str], when: Path) -> tuple[int, str]:
    """Start a command, press Ctrl-C once a path like ``when`` is there; return code and words."""
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    limit = time.monotonic() + 200
    while not list(when.parent.glob(when.name)) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    return process.returncode, said.decode()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes started here, so that sums have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("command", ["train", "compare"])
def test_ctrl_c_leaves_what_the_printed_command_goes_on_from(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Stopped in the middle and gone on with, a run is the undisturbed one, bit for bit."""
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    extra = ["--method", "lora:rank=2", "--epochs", "30", "--lr", "0.001"]
    folder = tmp_path / "a run's folder"  # what a shell must have in quotes
    inner = "." if command == "train" else "runs/lora_rank=2-seed0"
    start = [command, *tiny.start(folder), *extra]
    code, said = interrupted(start, folder / inner / "checkpoints" / "step-*")
    assert code == 130 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert "a checkpoint was written. Go on with: deltafit " in last
    assert not (folder / inner / "metrics.json").exists()

    words = shlex.split(last.partition("Go on with: deltafit ")[2])
    assert words == [*start, "--resume"]
    done(*words)
    whole = tmp_path / "whole"
    done(command, *tiny.start(whole), *extra)
    one, other = (read_json(path / inner / "metrics.json") for path in (folder, whole))
    for key in ("before", "after", "history", "best_step"):
        assert one[key] == other[key], key
    tensors, expected = (
        read_tensors(path / inner / "adapter" / "adapter_model.safetensors")
        for path in (folder, whole)
    )
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a shell with pipes")
@pytest.mark.parametrize("command", ["predict", "inspect"])  # one writes plainly, one through rich
def test_a_reader_that_has_had_enough_is_no_failure(tiny: Tiny, command: str) -> None:
    line = f"seq 5000 | sed s/^/w/ | {shlex.join([*COMMAND, command, str(tiny.run)])} | head -n 1"
    script = f"{line}; exit ${{PIPESTATUS[2]}}"
    result: Any = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=False, env=ENVIRONMENT, timeout=200
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.count(b"\n") == 1


@pytest.mark.slow
def test_an_old_encoding_gets_escapes(tiny: Tiny) -> None:
    shown = run("inspect", tiny.model, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"\\xd7" in shown.stdout  # ×


@pytest.mark.slow
def test_nothing_but_results_on_standard_output(tiny: Tiny, tmp_path: Path) -> None:
    """Progress and warnings of libraries stay out of what a program reads; colours too."""
    trained = run("train", *tiny.start(tmp_path / "run"))
    assert trained.returncode == 0 and b"\x1b" not in trained.stdout + trained.stderr
    assert b"training: 10/10" in trained.stderr and b"training: " not in trained.stdout
    assert trained.stdout.strip().startswith(b"Before and after training")
    told = (b"training: ", b"evaluation ", b"warning: ")
    assert all(line.startswith(told) or b"every held-out row" in line
               for line in trained.stderr.splitlines()), trained.stderr.decode()  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["verify", "--help"]])
def test_an_output_that_takes_nothing(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, *words], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, timeout=60,
            check=False,
        )  # fmt: skip
    said = b"deltafit: The system refused: No space left on device.\n"
    assert (result.returncode, result.stderr) == (1, said)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['deltafit', '--help']; from deltafit.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'sklearn', 'pandas', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert result.stdout.endswith(b"set()\n"), result.stdout[-200:]
