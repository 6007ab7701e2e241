"""What the doctor finds in hyperparameters: what was planted, and else nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.findings import Check
from deltafit.experiments.recipe import Entry
from deltafit.experiments.search import Search
from deltafit.experiments.settings_checks import (
    SETTINGS_CHECKS,
    allocation,
    evaluations,
    few_steps,
    large_step,
    learning_rate,
    warmup,
)
from deltafit.methods import METHODS
from tests.experiments.cases import case_of, only


def test_defaults_of_every_method_have_no_finding(tmp_path: Path) -> None:
    runs = [name for name in METHODS if name != "modules"]
    case = case_of(tmp_path, runs=runs)
    assert [found for check in SETTINGS_CHECKS for found in check(case)] == []


def test_full_fine_tunings_rate_is_too_low_for_an_adapter_alone(tmp_path: Path) -> None:
    case = case_of(tmp_path, runs=["full", "lora", "dora:rank=4"], learning_rate=2e-5)
    lora, dora = learning_rate(case)
    assert lora.severity == "warning" and lora.rows == ("lora",) and dora.rows == ("dora:rank=4",)
    assert lora.sentence.startswith(
        "lora trains at a rate of 2e-5, 25 times below its default of 5e-4"
    )
    assert lora.remedy == "--set runs.1.settings.learning_rate=5e-4"
    assert dora.remedy.startswith("--set runs.2.settings.learning_rate=")
    # The sweep's 5e-5 is a tenth, whatever the last bit of the quotient.
    assert list(learning_rate(case_of(tmp_path, learning_rate=5e-5))) == []


def test_the_remedy_is_where_the_rate_comes_from(tmp_path: Path) -> None:
    grid = Entry("lora", grid={"rank": [2, 4], "learning_rate": [1e-6, 1e-3]})
    found = only(list(learning_rate(case_of(tmp_path, runs=[grid]))))
    assert found.remedy == "--set 'runs.0.grid.learning_rate=[5e-4]'" and len(found.rows) == 2
    own = Entry("lora", settings={"learning_rate": 1e-6})
    found = only(list(learning_rate(case_of(tmp_path, runs=[own]))))
    assert found.remedy == "--set runs.0.settings.learning_rate=5e-4"
    found = only(list(learning_rate(case_of(tmp_path, learning_rate=1e-6))))
    assert found.remedy == "--set settings.learning_rate=5e-4"


def test_a_rate_that_is_searched_is_no_finding(tmp_path: Path) -> None:
    case = case_of(tmp_path, runs=["full", "lora"], learning_rate=2e-5)
    search = Search({"learning_rate": [1e-5, 1e-3]}, 2)
    assert [*learning_rate(replace(case, recipe=replace(case.recipe, search=search)))] == []
    own = Entry("lora", space=search.space)
    recipe = replace(case.recipe, search=Search({}, 2), runs=(Entry("full"), own))
    assert [*learning_rate(replace(case, recipe=recipe))] == []
    assert len([*learning_rate(case)]) == 1


def test_a_rate_far_too_high(tmp_path: Path) -> None:
    found = only(list(learning_rate(case_of(tmp_path, runs=["full"], learning_rate=1e30))))
    assert "times above its default of 5e-5; it may diverge" in found.sentence


# 192 training rows in batches of 8: 24 steps an epoch, 72 in all.
@pytest.mark.parametrize(
    ("check", "settings", "severity", "sentence", "remedy"),
    [
        (few_steps, {"batch_size": 64}, "warning", "The run makes 9 optimiser steps",
         "--set settings.epochs=7"),
        (few_steps, {"accumulation": 8}, "warning", "makes 9 optimiser", "settings.epochs=7"),
        (large_step, {"batch_size": 200}, "note", "A step of 200 rows", "settings.batch_size=24"),
        (evaluations, {"evaluate_every": 72}, "warning", "every 72 steps and has 72",
         "--set settings.evaluate_every=null"),
        (evaluations, {"patience": 2}, "warning", "is evaluated 3 times, and a patience of 2",
         "--set settings.patience=1"),
        (evaluations, {"patience": 3, "evaluate_every": 24}, "warning", "evaluated 3 times",
         "--set settings.patience=1"),
        (evaluations, {"patience": 2, "validation": "none"}, "error", "needs validation rows",
         "--set data.validation=0.1"),
        (warmup, {"warmup": 0.9}, "warning", "for 65 of its 72 steps", "settings.warmup=0.06"),
        (allocation, {"runs": ["adalora:rank=4,interval=50"]}, "warning", "all ranks go at once",
         "--set runs.0.method=adalora:rank=4 or --set settings.epochs="),
    ],
)  # fmt: skip
def test_a_schedule_longer_than_the_run(
    tmp_path: Path, check: Check, settings: dict[str, Any], severity: str, sentence: str,
    remedy: str,
) -> None:  # fmt: skip
    found = only(list(check(case_of(tmp_path, **settings))))
    assert found.severity == severity
    assert sentence in found.sentence and remedy in found.remedy


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluate_every": 71},
        {"patience": 1},
        {"patience": 3, "evaluate_every": 12},
        {"warmup": 0.3},
        {"batch_size": 192, "epochs": 20},
        {"runs": ["adalora:interval=30", "adalora:rank=12,interval=99"]},
    ],
)
def test_what_just_fits_is_no_finding(tmp_path: Path, settings: dict[str, Any]) -> None:
    case = case_of(tmp_path, **settings)
    assert [found for check in SETTINGS_CHECKS for found in check(case)] == []


def test_a_row_of_its_own_length_is_named(tmp_path: Path) -> None:
    runs = ["head", Entry("lora", settings={"epochs": 1, "batch_size": 96})]
    found = only(list(few_steps(case_of(tmp_path, runs=runs))))
    assert "The row 'lora' makes 2 optimiser steps" in found.sentence
    assert found.remedy.startswith("--set runs.1.settings.epochs=10")
