"""The report folder holds what it links, and the report says how to read it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltafit.experiments.report import verdict, write_report
from deltafit.experiments.rows import failed_row
from deltafit.tasks.metrics import classification_metrics
from tests.experiments.rows import example, run


def measured(classes: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, size=20 * classes)
    logits = generator.normal(size=(len(labels), classes)) + 3 * np.eye(classes)[labels]
    return classification_metrics(labels, logits, [f"class {index}" for index in range(classes)])


@pytest.mark.slow
def test_the_folder_holds_report_data_and_every_linked_plot(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    histories = {"full": [[{"step": 1, "train_loss": 2.0}, {"step": 2, "validation_loss": 1.5}]]}
    facts = {"seed": 0, "versions": {"torch": "2"}}
    for _ in range(2):  # writing again replaces what was written
        write_report(tmp_path, example(), histories, {"full": measured(3)}, {}, facts)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[.*\]\((.*)\)", report)
    assert len(links) == 5
    for link in links:
        assert (tmp_path / link).read_bytes().startswith(b"\x89PNG")
    assert verdict(example()) in report
    assert "- full: learning rate [2e-5] chosen on validation" in report
    assert "- versions:\n  - torch: 2" in report
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert stored["rows"] == json.loads(json.dumps(example()))
    assert (tmp_path / "comparison.csv").read_text().count("\n") == 1 + len(example())
    assert (tmp_path / "kept.txt").read_text() == "mine"
    names = {path.name for path in tmp_path.iterdir()}
    reports = {"report.html", "report.md"}
    assert names >= reports and names - reports == {
        "kept.txt",
        "comparison.csv",
        "comparison.json",
        "plots",
    }


def test_a_report_without_histories_metrics_or_facts(tmp_path: Path) -> None:
    write_report(tmp_path / "new", [run("lora", 0.95, None)], {}, {}, {}, {})
    report = (tmp_path / "new" / "report.md").read_text(encoding="utf-8")
    assert "## Facts" not in report
    assert {path.name for path in (tmp_path / "new" / "plots").iterdir()} == {
        "accuracy.png",
        "share.png",
    }


def test_the_report_says_what_the_intervals_hold(tmp_path: Path) -> None:
    write_report(tmp_path, example(), {}, {}, {}, {})
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "All are judged on the same 3080 rows." in report
    assert "Wilson's where there is one seed, and holds the sampling of rows alone" in report
    assert "with several seeds it holds rows and seeds both" in report


def test_a_failed_method_is_in_the_report_and_its_loss_in_the_plots(tmp_path: Path) -> None:
    failure = "diverged at step 2: loss nan. Lower --lr."
    rows = [failed_row("full", "all", failure), run("lora", 0.95, None)]
    history = [{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": math.nan}]
    write_report(tmp_path, rows, {"full": [history]}, {}, {}, {})
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"- full: {failure}" in report and "| failed |" in report
    assert "full diverged at step 2 and is not judged." in report
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"accuracy", "share", "loss"}
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert stored["rows"][0]["failure"] == failure


def test_a_report_of_failures_alone_has_no_plots(tmp_path: Path) -> None:
    write_report(tmp_path, [failed_row("full", "all", "ran out of memory.")], {}, {}, {}, {})
    assert not list((tmp_path / "plots").iterdir())
    assert "There is nothing to judge" in (tmp_path / "report.md").read_text(encoding="utf-8")
