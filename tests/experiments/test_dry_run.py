"""A dry run of a recipe: what stops it, and what does not."""

from pathlib import Path
from typing import NoReturn

import pytest

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

    def fails(_: RunConfig) -> NoReturn:
        raise error

    monkeypatch.setattr(planning, "try_run", fails)
    (arm,) = dry_run(recipe, tmp_path, overrides=ONE).arms
    assert arm.seconds is None and not arm.tried and arm.memory is not None
    error = Interrupted("Stopped.")
    with pytest.raises(Interrupted):
        dry_run(recipe, tmp_path, overrides=ONE)
