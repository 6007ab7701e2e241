"""Every recipe of the repository means the runs that it should, on any model, and so do twins."""

import csv
from pathlib import Path

import pytest

from deltafit.data import MODELS
from deltafit.experiments.dry_run import dry_run
from deltafit.experiments.left_out import LEFT_OUT_FILE
from deltafit.experiments.recipe import Recipe, arms_of, experiment_of
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.recipe_run import run
from deltafit.experiments.recipe_start import check_runs
from deltafit.files import read_json
from tests.training.tiny_runs import save_model, write_table

FOLDER = Path(__file__).parents[2] / "recipes"
RUNS = {
    "imdb-bert": 2,
    "sms-gpt2-sweep": 19,
    "banking77-bert": 4,
    "imdb-bert-cased-baseline": 3,
    "modules": 5,
    "tuned-rates": 12,
}
TRIALS = {"tuned-rates": 4 * 8 - 4}  # besides those runs
TWINS = {"minilm": {**RUNS}, "smollm2": {**RUNS, "sms-gpt2-sweep": 7}}


def runs_of(recipe: Recipe) -> int:
    return len(arms_of(recipe)) * len(recipe.seeds)


def test_every_recipe_is_counted_here() -> None:
    assert {path.stem for path in FOLDER.rglob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_and_its_twins_mean_so_many_runs(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    published = read_recipe(path)
    assert runs_of(published) == RUNS[name] and published.name == name
    assert published.about and not published.changes
    for model in MODELS:
        if model == published.model:
            continue  # it is its own
        twin = read_recipe(path, [f"model={model}"])
        assert runs_of(twin) == TWINS[model][name]
        assert twin.name == f"{name}-{model}" and twin.changes


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_dry_runs_on_a_model_and_texts_of_ones_own(name: str, tmp_path: Path) -> None:
    architecture = "gpt2" if "gpt2" in name else "bert"
    overrides = [
        f"model={save_model(tmp_path / 'model', architecture)}",
        f"data={write_table(tmp_path / 'train.csv')}",
        f"data.test_data={write_table(tmp_path / 'test.csv', 20, seed=5)}",
        *("data.limit=30", "settings.max_length=12"),
        *(["budget=2000"] if name == "modules" else []),
    ]
    plan = dry_run(FOLDER / f"{name}.yaml", tmp_path / "store", overrides=overrides)
    assert (plan.runs, plan.finished) == (RUNS[name] + TRIALS.get(name, 0), 0)
    assert plan.problem is None
    assert all(arm.memory is not None and sum(arm.memory.values()) > 0 for arm in plan.arms)


def test_the_sweep_is_as_published() -> None:
    sweep = read_recipe(FOLDER / "sms-gpt2-sweep.yaml")
    methods = [arm.method for arm in arms_of(sweep)]
    pairs = [(m.rank, m.alpha) for m in methods if m.command_line_name == "lora"]  # type: ignore[attr-defined]
    assert pairs == [(rank, alpha) for rank in (4, 8, 16, 32) for alpha in (4, 8, 16, 32)]
    assert [method.result_name for method in methods[16:]] == ["all", "last_block", "last_layer"]
    assert all(arm.settings.base_dropout == "off" for arm in arms_of(sweep))
    assert sweep.published is not None and len(sweep.published.figures) == 19


@pytest.mark.slow
@pytest.mark.usefixtures("no_images")
def test_the_sweep_itself_runs_and_all_its_rows_are_in_the_report(tmp_path: Path) -> None:
    overrides = [
        f"model={save_model(tmp_path / 'model', 'gpt2')}",
        f"data={write_table(tmp_path / 'train.csv')}",
        f"data.test_data={write_table(tmp_path / 'test.csv', 20, seed=5)}",
        *("settings.epochs=1", "settings.max_length=12"),
    ]
    result = run(FOLDER / "sms-gpt2-sweep.yaml", tmp_path / "store", overrides=overrides)
    runs = [row for row in result.rows if row["kind"] == "run"]
    grid = [f"r={rank} α={alpha}" for rank in (4, 8, 16, 32) for alpha in (4, 8, 16, 32)]
    assert [row["name"] for row in runs] == [*grid, "all", "last block + head", "head only"]
    assert not any(row.get("failure") for row in runs)
    written = read_json(result.folder / "comparison.json")["rows"]
    assert [row["name"] for row in written] == [row["name"] for row in result.rows]
    page, text = ((result.folder / f"report.{kind}").read_text(encoding="utf-8")
                  for kind in ("html", "md"))  # fmt: skip
    assert all(row["name"] in page and f"| {row['name']} |" in text for row in runs)
    assert "Rank and α" in page
    with (result.folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 19 and all(line["final_train_acc"] for line in lines)
    # On other texts with another model nothing is said of what was published.
    assert "Published" not in page and ".9533" not in text
    # The three questions. All rows adapt the same matrices: what one of them needs is measured.
    answers = text.partition("## Which matrices, which layers, which rank")[2]
    assert "one kind of matrix at a time was left out" in answers
    assert "Which layers: is training all, the last block or the head as good?" in answers
    assert "Which rank is enough? Of lora, on average over α 4, 8, 16 and 32, rank" in answers
    kept = result.folder / LEFT_OUT_FILE
    written_at = kept.stat().st_mtime_ns
    run(FOLDER / "sms-gpt2-sweep.yaml", tmp_path / "store", overrides=overrides)
    assert kept.stat().st_mtime_ns == written_at, "and not measured again"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("model", MODELS)
def test_twins_fit_the_packaged_models(
    name: str, model: str, minilm_path: Path, smollm2_path: Path
) -> None:
    experiment = experiment_of(read_recipe(FOLDER / f"{name}.yaml", [f"model={model}"]))
    check_runs(experiment.runs(), jointly=False)
    assert len(experiment.runs()) == TWINS[model][name]
