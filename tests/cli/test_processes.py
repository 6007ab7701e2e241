"""The installed command in processes of its own: Ctrl-C, pipes, encodings."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deltafit.files import read_json, read_tensors
from tests.cli.commands import Tiny

START = "import sys; from deltafit.cli import main; sys.argv[0] = 'deltafit'; main()"
COMMAND = [sys.executable, "-c", START]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


def run(*words: object, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    options = {"capture_output": True, "timeout": 120, "env": ENVIRONMENT} | options
    return subprocess.run([*COMMAND, *map(str, words)], check=False, **options)


def interrupted(words: list[str], when: Path) -> tuple[int, str]:
    """Start a command, press Ctrl-C once ``when`` is there; return its code and what it said."""
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    limit = time.monotonic() + 100
    while not list(when.parent.glob(when.name)) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    return process.returncode, said.decode()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_ctrl_c_leaves_what_the_printed_command_goes_on_from(
    tiny: Tiny, tmp_path: Path, command: str
) -> None:
    """Stopped in the middle and gone on with, a run is the undisturbed one, bit for bit."""
    extra = ["--method", "lora:rank=2", "--epochs", "60", "--lr", "0.001"]
    folder = tmp_path / "a run's folder"  # what a shell must have in quotes
    run_folder = folder if command == "train" else folder / "runs" / "lora_rank=2-seed0"
    code, said = interrupted(
        [command, *tiny.start(folder), *extra], run_folder / "checkpoints" / "step-*"
    )
    assert code == 130 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert "a checkpoint was written. Go on with: deltafit " in last
    assert not (run_folder / "metrics.json").exists()

    words = shlex.split(last.partition("Go on with: deltafit ")[2])
    assert words == [command, *tiny.start(folder), *extra, "--resume"]
    again = run(*words)
    assert again.returncode == 0, again.stderr.decode()

    whole = tmp_path / "whole"
    assert run(command, *tiny.start(whole), *extra).returncode == 0
    undisturbed = whole if command == "train" else whole / "runs" / "lora_rank=2-seed0"
    one, other = (read_json(path / "metrics.json") for path in (run_folder, undisturbed))
    for key in ("before", "after", "history", "best_step"):
        assert one[key] == other[key], key
    one, other = (
        read_tensors(path / "adapter" / "adapter_model.safetensors")
        for path in (run_folder, undisturbed)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_ctrl_c_before_anything_is_done_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    code, said = interrupted(
        ["train", *tiny.start(tmp_path / "run")], tmp_path / "run" / "run.json"
    )
    assert code == 130 and "Go on with: deltafit train" in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a shell with pipes")
def test_a_reader_that_has_had_enough_is_no_failure(tiny: Tiny) -> None:
    command = shlex.join(COMMAND)
    texts = "seq 3000 | sed s/^/w/"
    for line in (
        f"{texts} | {command} predict {tiny.run} | head -n 1",
        f"{command} inspect {tiny.model} | head -n 1",
        f"{command} evaluate {tiny.run} --data {tiny.test} | true",
    ):
        script = f"set -o pipefail; {line}"
        result = subprocess.run(
            ["bash", "-c", script], capture_output=True, check=False, env=ENVIRONMENT, timeout=120
        )
        assert result.returncode == 0, (line, result.stderr.decode())
        assert result.stderr == b""


@pytest.mark.slow
def test_a_closed_log_does_not_stop_training(tiny: Tiny, tmp_path: Path) -> None:
    line = f"{shlex.join([*COMMAND, 'train', *tiny.start(tmp_path / 'run')])} 2>&1 >/dev/null"
    script = f"{line} | head -c 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], check=False, env=ENVIRONMENT, timeout=120)
    assert result.returncode == 0 and (tmp_path / "run" / "adapter").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_old_encoding(tiny: Tiny, encoding: str) -> None:
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    predicted = run("predict", tiny.run, "film é 映画", env=environment)
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout.decode(encoding))["text"] == "film é 映画"
    shown = run("inspect", tiny.model, env=environment)
    assert shown.returncode == 0 and b"Traceback" not in shown.stderr


@pytest.mark.slow
def test_nothing_but_results_on_standard_output(tiny: Tiny, tmp_path: Path) -> None:
    """Progress, warnings of libraries and colours stay out of what a program reads."""
    result = run("evaluate", tiny.run, "--data", tiny.test, "--json")
    assert json.loads(result.stdout)["count"] == 20 and result.stderr == b""
    trained = run("train", *tiny.start(tmp_path / "run"))
    assert trained.returncode == 0 and b"\x1b" not in trained.stdout + trained.stderr
    assert b"training: 10/10" in trained.stderr and b"training: " not in trained.stdout
    assert b"Warning" not in trained.stderr, trained.stderr.decode()


@pytest.mark.slow
def test_help_answers_in_a_second() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert min(times) < 1, times
