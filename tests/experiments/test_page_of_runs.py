"""A comparison that was run: its page holds what the runs left."""

from pathlib import Path

import numpy as np
import pytest

from deltafit.experiments.comparison import compare
from deltafit.files import read_json, read_tensors
from deltafit.methods import LoRA
from deltafit.prediction.inspecting import inspect
from deltafit.tasks.metrics import expected_calibration_error
from deltafit.training.settings import TrainingSettings
from tests.experiments.html_page import Page
from tests.training.tiny_runs import save_model, tables

pytestmark = pytest.mark.slow


def test_the_page_of_real_runs_holds_what_they_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    model, data = save_model(tmp_path / "model"), tables(tmp_path)
    settings = TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=1e-2)
    methods = ["head", "full", *(LoRA(rank=r, alpha=a) for r in (1, 2) for a in (4, 8))]
    result = compare(
        model, data, tmp_path / "out", methods=methods, seeds=(0, 1), settings=settings
    )
    page = Page((result.folder / "report.html").read_text(encoding="utf-8"))
    words = page.words()
    assert [each["id"] for each in page.all("section")] == [
        *(
            "table",
            "questions",
            "costs",
            "grid",
            "loss",
            "classes",
            "confusions",
            "calibration",
            "changes",
        ),
        "facts",
    ]
    assert words.index(" ".join(result.verdict.split())) < words.index("All methods")
    assert "The reference is full." in words
    for question in ("Which matrices, under a budget", "Which layers: is training all, the last",
                     "Which rank is enough? Of lora, on average over α 4 and 8, rank",
                     "What does α do? Of lora, on average over rank 1 and 2, α ="):  # fmt: skip
        assert question in words and question in (result.folder / "report.md").read_text()

    runs = [result.folder / "runs" / f"head-seed{seed}" for seed in (0, 1)]
    stored = [read_tensors(run / "predictions.safetensors") for run in runs]
    errors = [
        expected_calibration_error(each["test/labels"].numpy(), each["test/logits"].numpy())
        for each in stored
    ]
    assert f"head {100 * np.mean(errors):.1f} % (" in words

    folder = result.folder / "runs" / "lora_rank=2_alpha=8-seed0"
    drawn = "".join("".join(picture.itertext()) for picture in page.parsed_pictures())
    for change in inspect(folder).changes:  # type: ignore[union-attr]
        assert f"{100 * change.share:.2g}" in drawn and f"{change.effective_rank:.1f}" in drawn
    rows = {row["name"]: row for row in read_json(result.folder / "comparison.json")["rows"]}
    assert rows["head"]["against_full"]["name"] == "full"
    assert rows["full"]["against_full"] is None
    assert rows["head"]["seconds_range"][0] <= rows["head"]["seconds"]
    assert rows["full"]["settings"] == {"method": "full"}
    low, high = rows["head"]["macro_f1_interval"]
    assert low < rows["head"]["macro_f1"] < high
