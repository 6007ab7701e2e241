"""The verdict says what the figures say; the report folder holds what it links."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from deltafit.experiments.report import verdict, write_report
from deltafit.tasks.metrics import classification_metrics
from tests.experiments.rows import against, difference, example, row, run


def test_the_cheapest_of_a_tie_is_advised_and_the_tie_is_named() -> None:
    text = verdict(example())
    assert text.startswith("Ship lora rank=8 alpha=16 targets=query,value (93.4 % accuracy")
    assert "within noise of the best, lora rank=16 alpha=32 targets=all-linear (93.8 %" in text
    assert "full tied as well" in text
    cheap = "the best cheap baseline, frozen features + logistic regression,"
    # Of the advised first: that the best beats the baseline says nothing of it.
    assert text.endswith(
        f"lora rank=8 alpha=16 targets=query,value does not beat {cheap} beyond noise "
        f"(+0.4 ± 0.7 points). lora rank=16 alpha=32 targets=all-linear beats {cheap} "
        "by 0.8 ± 0.6 points."
    )


def test_fewer_trained_parameters_decide_where_no_size_is_known() -> None:
    rows = [
        run("big", 0.95, None, trainable=1_000_000, saved_bytes=None),
        run("small", 0.94, difference(-1, 1.5), trainable=1_000, saved_bytes=None),
    ]
    assert verdict(rows).startswith("Ship small (94.0 % accuracy, 1.0 k trained parameters):")


def test_a_baseline_in_the_tie_is_said_to_suffice() -> None:
    rows = [
        row("TF-IDF + linear SVM", "baseline", 0.96, difference(-1, 1.5)),
        run("lora", 0.97, None, **against("TF-IDF + linear SVM", 1, 1.5)),
    ]
    text = verdict(rows)
    assert text.startswith("Use TF-IDF + linear SVM (96.0 % accuracy): within noise of the best")
    assert "No adapter beats the cheap baselines beyond noise" in text


def test_a_baseline_that_wins_is_said_to_win() -> None:
    rows = [
        row("frozen", "baseline", 0.93, None),
        run("lora", 0.88, difference(-5, 1), **against("frozen", -5, 1)),
    ]
    text = verdict(rows)
    assert text.startswith("Use frozen (93.0 % accuracy): it is better than every other method")
    assert "No adapter beats" in text


def test_the_best_is_spoken_of_where_a_baseline_is_advised() -> None:
    rows = [
        row("TF-IDF", "baseline", 0.93, difference(-0.5, 0.6)),
        run("head", 0.934, difference(-0.1, 0.1), **against("TF-IDF", 0.4, 0.2)),
        run("full", 0.935, None, **against("TF-IDF", 0.5, 0.6)),
    ]
    text = verdict(rows)
    assert text.startswith("Use TF-IDF (93.0 % accuracy): within noise of the best, full")
    cheap = "the best cheap baseline, TF-IDF,"
    assert text.endswith(f"full does not beat {cheap} beyond noise (+0.5 ± 0.6 points).")


def test_a_clear_winner_a_best_and_cheapest_and_a_lone_method() -> None:
    clear = [run("lora", 0.95, None), run("head", 0.9, difference(-5, 1))]
    assert "better than every other method beyond noise" in verdict(clear)
    cheapest = [run("lora", 0.95, None), run("full", 0.94, difference(-1, 2), saved_bytes=10**8)]
    assert "full is within noise of it" in verdict(cheapest)
    assert "nothing else was compared" in verdict([run("lora", 0.95, None)])
    assert verdict([]) == "Nothing was compared."


def measured(classes: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, size=20 * classes)
    logits = generator.normal(size=(len(labels), classes)) + 3 * np.eye(classes)[labels]
    return classification_metrics(labels, logits, [f"class {index}" for index in range(classes)])


def test_the_folder_holds_report_data_and_every_linked_plot(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    histories = {"full": [{"step": 1, "train_loss": 2.0}, {"step": 2, "validation_loss": 1.5}]}
    facts = {"seed": 0, "versions": {"torch": "2"}}
    for _ in range(2):  # writing again replaces what was written
        write_report(tmp_path, example(), histories, {"full": measured(3)}, facts)
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
    assert names == {"kept.txt", "report.md", "comparison.csv", "comparison.json", "plots"}


def test_a_report_without_histories_metrics_or_facts(tmp_path: Path) -> None:
    write_report(tmp_path / "new", [run("lora", 0.95, None)], {}, {}, {})
    report = (tmp_path / "new" / "report.md").read_text(encoding="utf-8")
    assert "## Facts" not in report
    assert {path.name for path in (tmp_path / "new" / "plots").iterdir()} == {
        "accuracy.png",
        "share.png",
    }
