"""Trackers that fail: each is told once and left out, and nothing else is disturbed."""

from pathlib import Path
from typing import Any

import pytest

from deltafit.files import read_json
from deltafit.training import tracking as trackings
from deltafit.training.progress import Silent
from deltafit.training.tracking import Tracking, started_trackers, track_finished

METRICS: dict[str, Any] = {
    "before": {},
    "after": {"test": {"accuracy": 0.75}},
    "costs": {},
    "history": [{"step": 3, "accuracy": 0.25}, {"step": 6, "accuracy": 0.5}],
}
WHOLE = ["start", "settings", 3, 6, 6, "finish"]


class Said(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


class Fake:
    """A tracker that notes what it is asked for, and fails at one of these things."""

    tracker = None

    def __init__(self, fails_at: object) -> None:
        self.asked: list[object] = []
        self._fails_at = fails_at

    def _ask(self, what: object) -> None:
        self.asked.append(what)
        if what == self._fails_at:
            raise ConnectionError("no server\nand a page on why")

    def start(self) -> None:
        self._ask("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._ask("settings")

    def log(self, values: dict[str, Any], step: int) -> None:
        self._ask(step)

    def finish(self) -> None:
        self._ask("finish")


def follow(folder: Path, fakes: dict[str, Fake], patch: pytest.MonkeyPatch) -> list[str]:
    """Follow a run to its end; return what was said."""
    patch.setattr(trackings, "_made", lambda name, tracking, run: fakes[name])
    said = Said()
    with started_trackers(Tracking((*fakes,), folder, "r=8"), {"a": 1}, said) as trackers:
        for entry in METRICS["history"]:
            trackers.log(entry)
        trackers.conclude(METRICS)
    return said.sentences


@pytest.mark.parametrize(
    ("fails_at", "asked"),
    [
        ("start", ["start"]),
        ("settings", ["start", "settings", "finish"]),
        (3, ["start", "settings", 3, "finish"]),
        (6, ["start", "settings", 3, 6, "finish"]),
        ("finish", WHOLE),
    ],
)
def test_one_that_fails_is_told_once_and_the_others_get_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: object, asked: list[object]
) -> None:
    fakes = {"first": Fake(fails_at), "second": Fake(None)}
    said = follow(tmp_path, fakes, monkeypatch)
    assert said == ["The tracker first does not get all of r=8: no server"]
    assert fakes["first"].asked == asked and fakes["second"].asked == WHOLE
    assert read_json(tmp_path / "r=8" / "trackers.json")["finished"] == ["second"]

    # It is told what it missed once it works, and the other is not told again.
    again = {"first": Fake(None), "second": Fake(None)}
    monkeypatch.setattr(trackings, "_made", lambda name, tracking, run: again[name])
    tracking = Tracking(("first", "second"), tmp_path, "r=8")
    assert track_finished(tracking, {}, METRICS, Silent()) == ()
    assert again["second"].asked == []
    assert [what for what in again["first"].asked if what != "settings"] == ["start", 3, 6, 6,
                                                                             "finish"]  # fmt: skip
    assert read_json(tmp_path / "r=8" / "trackers.json")["finished"] == ["first", "second"]


def test_it_is_finished_though_all_fail_and_the_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = {"first": Fake("finish"), "second": Fake("finish")}
    monkeypatch.setattr(trackings, "_made", lambda name, tracking, run: fakes[name])
    tracking = Tracking((*fakes,), tmp_path)
    with pytest.raises(ZeroDivisionError), started_trackers(tracking, {}, Silent()):
        raise ZeroDivisionError
    assert all(fake.asked == ["start", "settings", "finish"] for fake in fakes.values())


def test_a_damaged_record_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r=8").mkdir()
    (tmp_path / "r=8" / "trackers.json").write_text("{")
    fakes = {"first": Fake(None)}
    assert follow(tmp_path, fakes, monkeypatch) == [] and fakes["first"].asked == WHOLE
