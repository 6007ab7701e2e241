"""What is noted in a run's folder while work on it goes on, and who is believed."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deltafit.training.folders import begun
from deltafit.training.noting import PROGRESS_FILE, Noting, noted
from deltafit.training.progress import Silent


class Counting(Silent):
    steps = 0

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        self.steps += 1


def test_it_notes_twice_a_second_and_tells_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    counting = Counting()
    noting = Noting(counting, tmp_path)
    noting.start("training", 40, 10)  # ten are done already: resumed
    note = noted(tmp_path)
    assert note is not None and (note.what, note.step, note.of, note.loss) == (
        *("training", 10, 40, None),
    )
    assert note.seconds_left is None
    seen = set()
    for done in range(11, 21):
        clock[0] += 0.2
        noting.step(done, done / 10, None)
        note = noted(tmp_path)
        assert note is not None
        seen.add(note.step)
    assert counting.steps == 10 and len(seen) == 4
    assert note.step == 19 and note.loss == 1.9
    assert note.seconds_left == pytest.approx(0.2 * (40 - 19))
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]


def test_work_of_unknown_length_and_a_folder_that_is_gone(tmp_path: Path) -> None:
    noting = Noting(Silent(), tmp_path)
    noting.start("prediction", None, 0)
    note = noted(tmp_path)
    assert note is not None and note.of is note.seconds_left is None
    lost = Noting(Silent(), tmp_path / "none")
    lost.start("training", 4, 0)
    lost.step(1, 0.5, None)
    assert noted(tmp_path / "none") is None


def test_who_is_at_it_no_more_is_not_believed(tmp_path: Path) -> None:
    Noting(Silent(), tmp_path).start("training", 4, 0)
    note, file = noted(tmp_path), tmp_path / PROGRESS_FILE
    assert note is not None and note.process == os.getpid()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    file.write_text(json.dumps(vars(replace(note, process=gone.pid))))
    assert noted(tmp_path) is None
    file.write_text(json.dumps(vars(replace(note, process=gone.pid, host="elsewhere"))))
    assert noted(tmp_path) is not None
    for damaged in ("", "[]", "{}", '{"what": "training"}'):
        file.write_text(damaged)
        assert noted(tmp_path) is None


def test_a_note_that_somebody_reads_keeps_no_folder_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def held(path: Path, *_: object) -> None:
        raise PermissionError(path)  # as Windows does

    with pytest.raises(ZeroDivisionError), begun(folder, {"config": 1}, resume=False):
        noting = Noting(Silent(), folder)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", held)
            noting.start("training", 4, 0)
        assert (folder / f".{PROGRESS_FILE}.part").is_file()
        raise ZeroDivisionError
    assert not folder.exists(), "nothing in it was worth keeping"

    with begun(folder, {"config": 1}, resume=False):
        Noting(Silent(), folder).start("training", 4, 0)
        monkeypatch.setattr(Path, "unlink", held)
    assert (folder / PROGRESS_FILE).is_file()
