"""``compare(jointly=True)``: which runs go together, and that the rows are those of single runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import UsageError
from deltafit.experiments.comparison import compare
from deltafit.files import read_json
from deltafit.methods import LoRA
from deltafit.training.interruption import Interrupted
from deltafit.training.settings import DataConfig, TrainingSettings
from tests.training.test_resume import InterruptAt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_images")]

SETTINGS = TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=1e-2)
METHODS = ("head", LoRA(rank=2), LoRA("all-linear", rank=3))
WORDS: dict[str, Any] = {"methods": METHODS, "settings": SETTINGS}


class Stopping(InterruptAt):
    """Presses Ctrl-C in a step of joint training alone; keeps what was said."""

    def __init__(self, step: int | None = None) -> None:
        super().__init__(step or -1)
        self.said: list[str] = []
        self._joint = False

    def start(self, what: str, total: int | None, done: int) -> None:
        self._joint = what.startswith("training 2 runs")

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        if self._joint:
            super().step(done, loss, examples_per_second)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def test_rows_are_those_of_runs_one_after_another(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    single = compare(model, data, tmp_path / "single", **WORDS)
    stopping = Stopping(4)
    folder = tmp_path / "joint"
    with pytest.raises(Interrupted, match="after step 4 of 10"):
        compare(model, data, folder, **WORDS, jointly=True, reporter=stopping)
    listening = Stopping()
    joint = compare(model, data, folder, **WORDS, jointly=True, resume=True, reporter=listening)
    together = "jointly: lora:rank=2, seed 0; lora:target_modules=all-linear,rank=3, seed 0"
    assert together in stopping.said and together in listening.said
    for one, other in zip(joint.rows, single.rows, strict=True):
        for key in ("name", "before", "after", "macro_f1", "interval", "trainable"):
            assert one[key] == pytest.approx(other[key]), (one["name"], key)
        # The digits of a rounded figure are part of what is saved.
        if other["saved_bytes"] is not None:
            assert one["saved_bytes"] == pytest.approx(other["saved_bytes"], rel=1e-2)
        said = [note for note in one["notes"] if "trained jointly with others:" in note]
        assert bool(said) == one["name"].startswith("lora")
        assert [note for note in one["notes"] if note not in said] == other["notes"]
    assert (folder / "report.md").read_text().count("trained jointly with others:") == 1
    metrics = {path.parent.name: read_json(path) for path in folder.glob("runs/*/metrics.json")}
    assert [content.get("joined") for _, content in sorted(metrics.items())] == [None, 2, 2]
    # All is finished: nothing is trained again.
    again = compare(model, data, folder, **WORDS, jointly=True, resume=True)
    assert again.rows[3:] == joint.rows[3:]


def test_a_run_that_diverges_is_a_row_that_says_so(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    # So large a scaling that its method alone diverges.
    methods = (LoRA(rank=2), LoRA(rank=2, alpha=1e30))
    settings = replace(SETTINGS, epochs=1)
    result = compare(
        model, data, tmp_path / "out", methods=methods, settings=settings, jointly=True
    )
    calm, wild = result.rows[3:]
    assert calm["failure"] is None and calm["after"] is not None
    assert "diverged at step" in wild["failure"] and wild["after"] is None


def test_nothing_to_join_is_refused_before_anything_is_written(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    for methods, seeds in ((["head", "lora"], [0]), (["head", "full"], [0, 1])):
        with pytest.raises(UsageError, match="--jointly finds nothing to train jointly"):
            compare(
                model, data, tmp_path / "out",
                methods=methods, seeds=seeds, settings=SETTINGS, jointly=True,
            )  # fmt: skip
    half = replace(SETTINGS, precision="fp16")
    with pytest.raises(UsageError, match="--jointly does not go with --precision fp16"):
        compare(
            model, data, tmp_path / "out",
            methods=["lora"], seeds=[0, 1], settings=half, jointly=True,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(
    model: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        num_processes = 2

    monkeypatch.setattr("deltafit.experiments.joining.processes", Two)
    with pytest.raises(UsageError, match="in one process; there are 2"):
        compare(
            model, data, tmp_path / "out",
            methods=["lora"], seeds=[0, 1], settings=SETTINGS, jointly=True,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
