"""Two processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deltafit.files import read_json
from deltafit.methods import Full, LoRA, Method
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import train
from tests.training.tiny_runs import save_model, trained_alike, write_table

SCRIPT = """
import sys
from tests.training.test_processes import go
go(*sys.argv[1:])
"""


def go(model: str, data: str, folder: str, method: str, head: str, batch_size: str) -> None:
    """Train one run; 41 rows in steps of 8, so that the last step has a single row."""
    torch.set_num_threads(1)
    settings = TrainingSettings(
        epochs=2,
        batch_size=int(batch_size),
        accumulation=8 // int(batch_size),
        learning_rate=1e-3,
        max_length=16,
        class_weights="balanced",
        label_smoothing=0.1,
    )
    train(
        model,
        DataConfig(data, validation="0.09"),
        folder,
        method=method,
        head=HeadConfig(head),  # type: ignore[arg-type]  # comes from a command line
        settings=settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "head"), [(LoRA(rank=2), "architecture"), (Full(), "mean")])
def test_two_processes_give_what_one_gives(tmp_path: Path, method: Method, head: str) -> None:
    model, data = save_model(tmp_path / "model"), write_table(tmp_path / "texts.csv", 46)
    go(model, data, str(tmp_path / "one"), str(method), head, "8")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(script), model, data, str(tmp_path / "two"), str(method), head, "2"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(command, check=True, env=environment, timeout=200)

    trained_alike(tmp_path / "one", tmp_path / "two")
    metrics = read_json(tmp_path / "two" / "metrics.json")
    assert metrics["costs"]["examples_seen"] == 82


@pytest.mark.slow
def test_two_processes_compare_and_one_of_them_speaks(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), write_table(tmp_path / "texts.csv", 46)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "deltafit", "compare", "--model", model, "--data", data, "--epochs", "1"),
        *("--methods", "head,lora", "--max-length", "16", "--output", str(tmp_path / "out")),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("TF-IDF + linear SVM") >= 1
    assert done.stdout.count("Report: ") == 1 and done.stderr.count("lora, seed 0") == 1
    rows = read_json(tmp_path / "out" / "comparison.json")["rows"]
    assert [row["name"] for row in rows[3:]] == ["head", "lora"]
    assert all(row["after"] is not None for row in rows)
