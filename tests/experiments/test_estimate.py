"""``estimate`` of a recipe: a row each, runs of one size tried once, what they have in common."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import UsageError
from deltafit.experiments import estimate as estimating
from deltafit.experiments.estimate import estimate
from deltafit.training.cost_law import CostLaw
from tests.experiments.recipe_runs import Listening

pytestmark = pytest.mark.slow

SECOND = CostLaw((1.0, 0.0, 0.0))


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Trials in this process, whose every step and pass takes a second; what was tried."""
    calls: list[Any] = []

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(arguments[0])
        return replace(
            function(*arguments), steps=SECOND, evaluating=SECOND, loading=0.0, looking=0.0,
            checking=0.0, proving=0.0, freezing=None,
        )  # fmt: skip

    monkeypatch.setattr(estimating, "in_own_process", call)
    return calls


def test_every_row_and_all_together(recipe: Path, tried: list[Any]) -> None:
    listening = Listening()
    found = estimate(recipe, reporter=listening)
    assert [(row.name, row.runs, row.jointly) for row in found.rows] == [
        ("head", 2, False), ("r=2", 2, False), ("r=4", 2, False),
    ]  # fmt: skip
    assert len(tried) == 3  # a seed costs nothing else
    assert [row.estimate.trainable for row in found.rows] == [99, 867, 1635]
    for row in found.rows:
        writing = row.estimate.parts["writing"].seconds
        # 10 steps, 2 validations, and 2 evaluations of 2 parts.
        assert row.estimate.whole.seconds == pytest.approx(10 + 2 + 4 + writing)
    # 3 parts for the baselines; the untouched model's 2 seconds are shared by the rows of a seed.
    assert found.baselines.seconds == 3
    alone = sum(row.whole.seconds for row in found.rows)
    assert found.whole.seconds == pytest.approx(alone + 3 - 4 * 2)
    content = found.to_dict()
    assert content["rows"][1]["estimate"]["trainable"] == 867
    assert content["memory"] == max(row.estimate.memory for row in found.rows)


def test_ranks_and_rates_share_what_they_share(recipe: Path, tried: list[Any]) -> None:
    overrides = ["runs.1.grid={rank: [2], alpha: [4, 8], learning_rate: [1e-3, 1e-2]}",
                 "runs.1.name='{alpha} {learning_rate}'"]  # fmt: skip
    found = estimate(recipe, overrides=overrides)
    assert len(found.rows) == 5 and len(tried) == 2


def test_jointly(recipe: Path, tried: list[Any]) -> None:
    found = estimate(recipe, jointly=True)
    group, head = found.rows
    assert (group.name, group.runs, group.jointly) == ("r=2, r=4", 4, True)
    assert (head.name, head.runs, head.jointly) == ("head", 2, False)
    assert [len(each) if isinstance(each, list) else 1 for each in tried] == [4, 1]
    steps, after = (group.estimate.parts[name].seconds for name in ("steps", "evaluation after"))
    assert (steps, after) == (10, 8)
    assert group.whole.seconds == group.estimate.whole.seconds
    with pytest.raises(UsageError, match="finds nothing to train jointly"):
        estimate(recipe, overrides=["runs=[{method: head}]"], jointly=True)


def test_trials_of_a_search_are_runs_too(recipe: Path, tried: list[Any]) -> None:
    space = "{learning_rate: {low: 1e-3, high: 1e-1}}"
    overrides = ["runs=[{method: head}]", f"search={{trials: 5, space: {space}}}"]
    (row,) = (found := estimate(recipe, overrides=overrides)).rows
    assert row.runs == 2 + 4 and len(tried) == 1
    assert found.whole.seconds == pytest.approx(row.whole.seconds + 3 - (6 - 2) * 2)


def test_in_processes_of_their_own(recipe: Path) -> None:
    found = estimate(recipe, overrides=["runs=[{method: lora}]"])
    (row,) = found.rows
    assert row.estimate.timed == 10 and row.estimate.memory > 10**8
    assert 0 < found.whole.low <= found.whole.seconds <= found.whole.high
