"""A dry run of a recipe: what stops it, and what does not."""

from io import StringIO
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from deltafit.cli.show_plan import show_plan
from deltafit.errors import TrainingError
from deltafit.experiments import dry_run as planning
from deltafit.experiments.dry_run import dry_run
from deltafit.training.config import RunConfig
from deltafit.training.interruption import Interrupted

ONE = ["runs=[{method: lora}]", "seeds=[0]"]


def test_ctrl_c_in_a_trial_stops_it_and_a_failure_does_not(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = TrainingError("it fell")

    def fails(_: RunConfig, *, quick: bool) -> NoReturn:
        raise error

    monkeypatch.setattr(planning, "try_run", fails)
    (arm,) = dry_run(recipe, tmp_path, overrides=ONE).arms
    assert arm.seconds is None and not arm.tried and arm.memory is not None
    error = Interrupted("Stopped.")
    with pytest.raises(Interrupted):
        dry_run(recipe, tmp_path, overrides=ONE)


@pytest.mark.parametrize("model", [[], ["model=nobody/has-this"]])
def test_times_of_runs_one_by_one_are_not_told_of_joined_ones(
    recipe: Path, tmp_path: Path, model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning._Sizes, "seconds", lambda _, config: 1.0)
    overrides = [*model, "runs=[{method: lora}]"]
    (arm,) = dry_run(recipe, tmp_path, overrides=overrides).arms
    assert arm.seconds == (None if model else 2)
    plan = dry_run(recipe, tmp_path, overrides=overrides, jointly=True)
    assert plan.jointly and [arm.seconds for arm in plan.arms] == [None]
    assert (plan.arms[0].memory is None) == bool(model)
    console = Console(file=StringIO(), record=True, width=200)
    show_plan(console, plan, "deltafit estimate x --jointly")
    assert "jointly is found out by: deltafit estimate x --jointly" in console.export_text()
