"""What the table of the estimating benchmark says of pairs that are written down here."""

from typing import Any

import pytest

import estimating

ESTIMATE: dict[str, Any] = {
    "took": 12.0, "memory": 900_000_000, "foretold": 1_300_000_000, "parameters": [10, 100],
    "training": {"seconds": 22.0, "low": 20.0, "high": 30.0},
    "whole": {"seconds": 36.0, "low": 30.0, "high": 40.0},
}  # fmt: skip
DONE = {"memory": 10**9, "training": 20.0, "whole": 30.0, "parameters": [10, 100]}


def test_errors_and_how_many_are_within_the_target() -> None:
    pair = {"estimate": ESTIMATE, "run": DONE}
    assert estimating.error(pair, "memory") == pytest.approx(-0.1)
    assert estimating.error(pair, "whole") == pytest.approx(0.2)
    slow = {"estimate": ESTIMATE, "run": {**DONE, "training": 44.0}}
    text = estimating.text_of({"one": [pair], "two": [slow], "three": []})
    assert "| one | 900 | 1000 | -10% | +30% | 22.0 (20.0 to 30.0) | 20.0 | +10% |" in text
    assert "training: within 20% in 1 of 2; off by 30% in the median, 50% at most." in text
    assert "within the range in 1 of 2" in text and "all exact" in text and "three" not in text
    assert estimating.text_of({"one": []}) == "Nothing is kept yet."


def test_twelve_varied_runs() -> None:
    runs = estimating.RUNS.values()
    assert len(runs) == 12
    assert {run.model for run in runs} == {"minilm", "smollm2", "bert-base"}
    assert len({run.method for run in runs}) >= 5
    for name in ("batch_size", "max_length", "epochs"):
        assert len({run.settings[name] for run in runs}) >= 3
