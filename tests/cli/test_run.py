"""``deltafit run``: a recipe's rows, its number of runs, and what is told of a wrong one."""

from pathlib import Path

import pytest

from deltafit.files import read_json
from tests.cli.commands import deltafit, done, refused
from tests.experiments.recipes import tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


def test_it_plans_runs_and_runs_no_more(recipe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = ("run", recipe, "--output", store, "--set", "seeds=[0]")
    planned = done(*words, "--dry-run")
    assert "3 runs, 0 of them finished." in planned
    # What the process of the tests holds already is part of it.
    assert any(f" {unit} " in planned for unit in ("MB", "GB"))
    assert "Training takes ~" in planned and "deltafit estimate" in planned
    assert not store.exists()

    text = done(*words)
    (folder,) = store.glob("tiny-*")  # of a changed recipe, whose report replaces no other one
    assert read_json(folder / "comparison.json")["verdict"] in text
    assert f"Report: {folder / 'report.html'}" in text
    assert "Use it: deltafit predict" not in text, "a baseline is advised"
    assert f"Every run: {folder / 'runs.csv'}" in text
    assert "3 runs, 3 of them finished." in done(*words, "--dry-run")

    again = deltafit(*words)
    assert again.exit_code == 0 and again.stderr == "" and again.stdout == text

    more = done("run", recipe, "--output", store, "--dry-run")
    assert "6 runs, 3 of them finished." in more
    for run in (store / "runs").iterdir():
        assert "canar" in done("verify", run)


def test_a_store_is_made_here_where_none_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("run", recipe, "--set", "seeds=[0]", "--set", "runs=[{method: head}]")
    assert "1 run, 0 of them finished." in done(*words, "--dry-run")
    assert not list(tmp_path.iterdir())
    (folder,) = Path("store").glob("tiny-*") if done(*words) else ()
    assert (folder / "report.html").is_file()


def test_it_plans_a_search_and_says_what_was_chosen(recipe: Path, tmp_path: Path) -> None:
    space = "{learning_rate: {low: 1e-3, high: 1e-1}, rank: [2, 4]}"
    words = (
        *("run", recipe, "--output", tmp_path, "--set", "seeds=[0]", "--set", "settings.epochs=1"),
        *("--set", "runs=[{method: head}, {method: lora}]", "--set"),
        f"search={{trials: 2, minutes: 60, parameters: 5000, space: {space}}}",
    )
    planned = " ".join(done(*words, "--dry-run").split())
    for said in (
        "Search in 2 of 2 rows, each: up to 2 trials, none begun after 60 minutes of training, "
        "sizes of at most 5,000 parameters besides the head.",
        "head: learning_rate 0.001 to 0.1 in equal factors",
        "lora: learning_rate 0.001 to 0.1 in equal factors; rank 2 or 4",
        "At most 4 runs, 0 of them finished.",
    ):
        assert said in planned
    text = done(*words)
    assert "the best of 2 trials by validation accuracy" in " ".join(text.split())
    (folder,) = tmp_path.glob("tiny-*")
    assert f"Every trial of the search: {folder / 'trials.csv'}" in text
    again = deltafit(*words)
    assert again.exit_code == 0 and again.stderr == "" and again.stdout == text
    assert "At most 4 runs, 4 of them finished." in done(*words, "--dry-run")


def test_a_wrong_recipe_is_2_and_says_where(recipe: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(recipe.read_text().replace("epochs: 2", "epoch: 2"))
    said = refused(2, "run", wrong, "--output", tmp_path / "store")
    assert f"{wrong}, line 8: settings.epoch: There is no such key here." in said
    assert "Did you mean 'epochs'?" in said
    words = ("run", recipe, "--output", tmp_path / "store", "--set")
    assert "--set settings.epochs=x: settings.epochs" in refused(2, *words, "settings.epochs=x")
    assert "--set takes key=value" in refused(2, *words, "epochs")
    assert "No such file" in refused(1, "run", "none.yaml", "--output", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_stopping_says_how_to_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deltafit.experiments.recipe_run.run", stop)
    monkeypatch.setattr("sys.argv", ["deltafit", "run", "a b.yaml", "--output", "store"])
    said = refused(130, "run", recipe, "--output", tmp_path / "store")
    assert "Go on with: deltafit run 'a b.yaml' --output store" in said and "--resume" not in said


def test_nothing_but_failures_is_a_failure(recipe: Path, tmp_path: Path) -> None:
    result = deltafit(
        "run", recipe, "--output", tmp_path, "--set", "settings.learning_rate=1e20",
        "--set", "runs=[{method: head}]", "--set", "seeds=[0]",
    )  # fmt: skip
    assert result.exit_code == 1 and "Every method failed" in result.stderr
