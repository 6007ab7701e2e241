"""A dry run of a recipe: what stops it, and what does not."""

from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from deltafit.cli.show_plan import show_plan
from deltafit.errors import DeltafitError
from deltafit.experiments import dry_run as planning
from deltafit.experiments.dry_run import Plan, dry_run
from deltafit.experiments.store import Store
from deltafit.methods import LoRA
from deltafit.training.config import RunConfig
from deltafit.training.interruption import Interrupted

ONE = ["runs=[{method: lora}]", "seeds=[0]"]


def test_ctrl_c_and_a_failure_stop_it_or_are_told(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = DeltafitError("Row 3 has no text.")

    def fails(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(planning, "foretell", fails)
    plan = dry_run(recipe, tmp_path, overrides=ONE)
    assert plan.problem == "Row 3 has no text." and plan.seconds is None
    assert [(arm.seconds, arm.memory) for arm in plan.arms] == [(None, None)]
    error = Interrupted("Stopped.")
    with pytest.raises(Interrupted):
        dry_run(recipe, tmp_path, overrides=ONE)


@pytest.mark.parametrize("jointly", [False, True])
def test_times_are_those_of_runs_like_them_or_rough(
    jointly: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["runs=[{method: lora}, {method: head}]"]
    before = dry_run(recipe, tmp_path, overrides=overrides, jointly=jointly)
    assert all(arm.roughly and arm.seconds and arm.memory for arm in before.arms)
    assert before.seconds == sum(arm.seconds or 0 for arm in before.arms)
    assert "~" in shown(before) and "deltafit estimate x" in shown(before)

    def outcome(_: object, config: RunConfig) -> dict[str, Any] | None:
        together = 2 if jointly and isinstance(config.method, LoRA) else None
        done = {"costs": {"training_seconds": 7.0}, "joined": together}
        return done if config.settings.seed == 0 else None

    monkeypatch.setattr(Store, "outcome", outcome)
    same = dry_run(recipe, tmp_path, overrides=overrides, jointly=jointly)
    assert [(arm.finished, arm.seconds, arm.roughly) for arm in same.arms] == [(1, 7.0, False)] * 2
    assert "~" not in shown(same) and "14.0 s in all" in shown(same)
    other = dry_run(recipe, tmp_path, overrides=overrides, jointly=not jointly)
    # Alone LoRA does not take what it takes beside others; a head is never joined.
    assert [arm.roughly for arm in other.arms] == [True, False]


def test_what_fails_in_one_row_leaves_the_others_known(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planning.foretell

    def fails_for_lora(config: RunConfig, *others: Any) -> Any:
        if isinstance(config.method, LoRA):
            raise DeltafitError("It fell.")
        return found(config, *others)

    monkeypatch.setattr(planning, "foretell", fails_for_lora)
    plan = dry_run(recipe, tmp_path, overrides=["runs=[{method: lora}, {method: head}]"])
    assert [arm.seconds is None for arm in plan.arms] == [True, False]
    assert plan.problem == "It fell." and "are not known of all: It fell." in shown(plan)


def test_a_model_that_is_not_here_leaves_memory_and_time_open(recipe: Path, tmp_path: Path) -> None:
    plan = dry_run(recipe, tmp_path, overrides=["model=nobody/has-this"])
    assert plan.problem is not None and plan.seconds is None
    assert "Memory and time are not known of all" in shown(plan) and "in all" not in shown(plan)


def shown(plan: Plan) -> str:
    console = Console(file=StringIO(), record=True, width=200)
    show_plan(console, plan, "deltafit estimate x")
    return console.export_text()
