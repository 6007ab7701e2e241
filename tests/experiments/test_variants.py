"""A changed recipe: what it no longer claims, and that its report replaces no other one."""

from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.recipe import Recipe
from deltafit.experiments.recipe_file import read_recipe
from tests.experiments.recipes import TEXT

LIMITED = TEXT.replace("  validation: 0.2", "  validation: 0.2\n  limit: 30").replace(
    "settings: {epochs: 1}", "settings: {epochs: 1}\n    data: {limit: 20}"
)
SWEEP = Path(__file__).parents[2] / "recipes" / "sms-gpt2-sweep.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(LIMITED, encoding="utf-8")
    return tmp_path / "tiny.yaml"


@pytest.mark.parametrize(
    "changes",
    [
        ["data=mine.csv"],
        ["data.data=mine.csv"],
        ["data={data: mine.csv}"],
        ["data.test_data=mine.csv"],
        ["model=elsewhere"],
        ["model=minilm", "data=mine.csv"],
        ["data=mine.csv", "settings.epochs=9", "model=elsewhere"],
    ],
)
def test_nothing_is_claimed_of_other_texts_or_another_model(path: Path, changes: list[str]) -> None:
    recipe = read_recipe(path, changes)
    assert recipe.published is None and recipe.about == ""
    assert "what it says of these, are left out" in recipe.changes
    assert "One epoch." not in recipe.changes
    for change in changes:
        key, _, value = change.partition("=")
        if key in ("data", "model") and value.isalpha() and value != "minilm":
            assert f"{value} instead of " in recipe.changes
    assert recipe.name.startswith("tiny-")


@pytest.mark.parametrize(
    "changes",
    [
        ["settings.epochs=9"],
        ["data.limit=9", "seeds=[4]"],
        ["model=minilm", "seeds=[4]"],
        ["data=TRAIN", "model=MODEL"],
        ["track=[wandb]"],
    ],
)
def test_what_was_published_stands_beside_its_own_texts_and_model_or_its_twin(
    path: Path, changes: list[str]
) -> None:
    recipe = read_recipe(path, changes)
    assert recipe.published is not None and recipe.about == "Three rows on a tiny model."
    assert ("One epoch." in recipe.changes) == ("model=minilm" in changes)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ([], 30),
        (["model=minilm"], 20),
        (["data=mine.csv"], None),
        (["model=minilm", "data=mine.csv"], None),
        (["data=mine.csv", "data.limit=7"], 7),
        (["data={data: mine.csv, limit: 7}"], 7),
        (["data=mine.csv", "data.limit=30"], 30),
        (["data.test_data=mine.csv"], 30),
    ],
)
def test_a_limit_of_rows_is_for_the_recipes_own_texts(
    path: Path, changes: list[str], limit: int | None
) -> None:
    recipe = read_recipe(path, changes)
    assert recipe.data.limit == limit
    dropped = "does not hold for other texts" in recipe.changes
    assert dropped == (limit is None)


def test_what_a_person_says_of_their_own_stays(path: Path) -> None:
    own = ["data=mine.csv", "about=Mine.", "changes=None.", "name=mine"]
    published = "published={source: me, figures: {head: {accuracy: 0.5}}}"
    recipe = read_recipe(path, [*own, published])
    assert (recipe.about, recipe.changes, recipe.name) == ("Mine.", "None.", "mine")
    assert recipe.published is not None and recipe.published.source == "me"


def name_of(path: Path, *changes: str) -> str:
    return read_recipe(path, changes).name


def test_each_change_has_a_folder_of_its_own_and_always_the_same(path: Path) -> None:
    names = [
        name_of(path),
        name_of(path, "model=minilm"),
        name_of(path, "model=elsewhere"),
        name_of(path, "settings.epochs=5"),
        name_of(path, "settings.epochs=6"),
        name_of(path, "model=minilm", "settings.epochs=5"),
        name_of(path, "seeds=[0]"),
        name_of(path, "data=mine.csv"),
    ]
    assert len(set(names)) == len(names) and names[:2] == ["tiny", "tiny-minilm"]
    assert names[5].startswith("tiny-minilm-")
    # The same command, however its words are ordered; and what changes nothing.
    both = ["settings.epochs=5", "seeds=[0]"]
    assert name_of(path, *both) == name_of(path, *both[::-1]) != names[3]
    assert name_of(path, "settings.epochs=9", "settings.epochs=5") == names[3]
    assert name_of(path, "settings.epochs=2", "track=[wandb]") == "tiny"
    assert name_of(path, "settings.epochs=5", "name=five") == "five"


def test_the_report_says_what_was_changed(path: Path) -> None:
    changes = ["model=minilm", "seeds=[3]", "runs.1.grid.rank=[8]"]
    assert read_recipe(path, changes).changes == (
        "One epoch. Changed: runs.1.grid.rank=[8], seeds=[3]."
    )


def test_a_list_that_grew_is_a_change(path: Path) -> None:
    changes = ["runs=[{method: head}, {method: lora}, {method: full}]", "runs.2.method=bitfit"]
    recipe: Recipe = read_recipe(path, changes)
    methods: list[Any] = [entry.method for entry in recipe.runs]
    assert methods == ["head", "lora", "bitfit"] and recipe.name.startswith("tiny-")


def test_the_sweep_on_ones_own_texts_claims_nothing_of_the_published_ones() -> None:
    recipe = read_recipe(SWEEP, ["model=my-checkpoint", "data=my.csv"])
    assert recipe.published is None and "GPT-2 on SMS spam" not in recipe.about
    twin = read_recipe(SWEEP, ["model=minilm"])
    assert twin.published is not None and twin.name == "sms-gpt2-sweep-minilm"
