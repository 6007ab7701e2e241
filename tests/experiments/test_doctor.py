"""``doctor``: all checks together, and before every run."""

from pathlib import Path

import pytest

from deltafit.errors import DeltafitError
from deltafit.experiments.comparison import compare
from deltafit.experiments.doctor import consult, doctor, heed
from deltafit.experiments.findings import Finding
from deltafit.experiments.recipe import experiment_of
from deltafit.experiments.recipe_run import run
from deltafit.training.train import load_data
from tests.experiments.cases import healthy_rows, recipe_of
from tests.experiments.recipe_runs import Listening
from tests.training.tiny_runs import LABELS


def test_a_healthy_recipe_has_no_finding(model: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model=model, runs=["lora", "head", "full"])
    (found,) = doctor(recipe)
    assert (found.severity, found.subject) == ("note", "padding"), "a BERT counts from the left"
    config = experiment_of(recipe).runs()[0]
    listening = Listening()
    consult([config], load_data(recipe.data), listening)
    assert listening.said == [], "which is nothing that training has to hear"


def test_everything_is_told_at_once_and_the_worst_first(model: str, tmp_path: Path) -> None:
    train = healthy_rows(240)
    for index in range(0, 60, 6):
        train[index] = (train[index][0], LABELS[1])
    recipe = recipe_of(
        tmp_path, model=model, train=train, test=train[100:130], max_length=5,
        runs=["lora:target_modules=qery", "full"], learning_rate=1e-9,
    )  # fmt: skip
    found = doctor(recipe)
    assert [each.severity for each in found] == sorted(
        (each.severity for each in found), key=["error", "warning", "note"].index
    )
    subjects = {each.subject for each in found}
    assert subjects >= {"targets", "duplicates", "truncation", "learning rate", "label noise"}


def test_an_error_stops_a_run_before_anything_is_written(model: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model=model, validation="none", patience=2)
    with pytest.raises(
        DeltafitError, match=r"needs validation rows to judge by\. → --set settings"
    ):
        run(recipe, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_errors_are_all_told_and_warnings_in_one_line() -> None:
    listening = Listening()
    warnings = [Finding("warning", subject, "…", "…") for subject in ("padding", "rate", "rate")]
    heed([*warnings, Finding("note", "x", "…", "…")], listening)
    assert listening.said == [
        "3 warnings (padding, rate): `deltafit doctor` on this recipe says more."
    ]
    heed([Finding("note", "x", "…", "…")], listening)
    assert len(listening.said) == 1
    errors = [Finding("error", "a", "One.", "--set a=1"), Finding("error", "b", "Two.", "3")]
    with pytest.raises(DeltafitError) as raised:
        heed([*errors, *warnings], listening)
    assert str(raised.value) == "One. → --set a=1\nTwo. → 3" and len(listening.said) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_a_run_is_warned_of_once_and_not_when_it_is_finished(model: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model=model, runs=["head"], epochs=1, batch_size=64)
    first, second = Listening(), Listening()
    run(recipe, tmp_path / "store", reporter=first)
    assert [said for said in first.said if "doctor" in said] == [
        "1 warning (few steps): `deltafit doctor` on this recipe says more."
    ]
    run(recipe, tmp_path / "store", reporter=second)
    assert second.said == []


def test_what_flags_ask_for_is_mended_by_flags(model: str, tmp_path: Path) -> None:
    """Every flag of every remedy is one of the command's, and none is of a recipe."""
    train = healthy_rows(240)
    recipe = recipe_of(
        tmp_path, model=model, train=train, test=train[100:130], learning_rate=1e-9, batch_size=200,
        warmup=0.9, evaluate_every=99, runs=["lora", "adalora:warmup=0.45,final=0.5"],
    )  # fmt: skip
    experiment, listening = experiment_of(recipe), Listening()
    configs = [experiment.runs_of(arm)[0] for arm in experiment.arms]
    consult(configs, load_data(recipe.data), listening)
    text = "\n".join(listening.said)
    assert "--set" not in text and "runs." not in text
    for words in (
        *("warning: ", "→ --lr none\n", "→ --epochs 20 or --batch-size 31"),
        *("→ --warmup 0.06\n", "→ --drop-duplicates (", "→ --evaluate-every none ("),
        "all ranks go at once. → --epochs ",
    ):
        assert words in text, words
    listening = Listening()
    consult(configs[:1], load_data(recipe.data), listening)
    assert "→ --lr 5e-4\n" in "\n".join(listening.said)
    recipe = recipe_of(tmp_path, model=model, runs=["adalora:interval=50"])
    consult(experiment_of(recipe).runs(), load_data(recipe.data), listening)
    assert "→ --method adalora or --epochs " in listening.said[-1]


def test_an_error_stops_a_comparison_before_it_begins(model: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model=model, validation="none", patience=2)
    with pytest.raises(DeltafitError, match=r"judge by\. → --patience none or --validation 0\.1$"):
        compare(
            model, recipe.data, tmp_path / "out", methods=["head"], settings=recipe.settings
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
