"""``deltafit doctor``: what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest

from tests.cli.commands import deltafit, done, refused
from tests.experiments.cases import healthy_rows, write_rows
from tests.training.tiny_runs import save_model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    train = write_rows(folder / "train.csv", healthy_rows(240))
    test = write_rows(folder / "test.csv", healthy_rows(30, start=240))
    path = folder / "mine.yaml"
    path.write_text(
        f"model: {save_model(folder / 'model')}\n"
        f"data: {{data: {train}, test_data: {test}, validation: 0.2}}\n"
        "settings: {batch_size: 8, max_length: 32}\n"
        "runs: [{method: lora}, {method: full}]\n"
    )
    return path


def test_a_healthy_recipe_is_a_line(recipe: Path) -> None:
    said = done("doctor", recipe)
    assert said.startswith("note: padding\n"), "on the left, by design"
    assert said.endswith(": 0 errors, 0 warnings, 1 note. Nothing stands in its way.\n")


@pytest.mark.slow
def test_warnings_come_with_their_flag_which_mends_them(recipe: Path) -> None:
    words = ("doctor", recipe, "--set", "settings.learning_rate=2e-5")
    said = done(*words)
    assert said.startswith("warning: learning rate\n  lora trains at a rate of 2e-5")
    flag = "--set runs.0.settings.learning_rate=5e-4"
    assert f"  → {flag}\n" in said and "0 errors, 1 warning, 1 note." in said
    assert "Nothing stands in its way." in done(*words, *flag.split())


def test_an_error_is_1(recipe: Path) -> None:
    words = ("--set", "data.validation=none", "--set", "settings.patience=2")
    result = deltafit("doctor", recipe, *words)
    assert result.exit_code == 1 and result.stderr == ""
    assert result.stdout.startswith("error: patience\n") and "1 error, " in result.stdout
    result = deltafit("doctor", recipe, *words, "--json")
    assert result.exit_code == 1
    found, _ = json.loads(result.stdout)["findings"]
    assert (found["severity"], found["subject"], found["rows"]) == ("error", "patience", [])


def test_json_has_every_finding(recipe: Path) -> None:
    content = json.loads(done("doctor", recipe, "--json"))
    assert content["recipe"] == "mine"
    assert [each["subject"] for each in content["findings"]] == ["padding"]


def test_a_wrong_recipe_is_2_and_one_that_is_not_there_1(recipe: Path) -> None:
    assert "Did you mean 'epochs'?" in refused(2, "doctor", recipe, "--set", "settings.epoch=1")
    assert "No such file" in refused(1, "doctor", "none.yaml")
