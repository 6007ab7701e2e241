"""The space of a search is what the recipe says, and what it cannot be is a sentence."""

import re
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import UsageError
from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe import Entry, RecipeError, arms_of
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import Choices, Range, Space, spaces_of
from deltafit.methods import AdaLoRA, LoRA
from deltafit.training.settings import HeadConfig, TrainingSettings
from tests.experiments.recipes import TEXT
from tests.experiments.searches import RATES, recipe_with, space_of

SEARCH = """\
search:
  trials: 3
  space:
    learning_rate: {low: 1e-5, high: 1e-2}
    dropout: {low: 0, high: 0.3}
    alpha: [8, 16]
    warmup: [0, 0.1]
"""


def spaces(*runs: Entry, space: dict[str, Any], **changes: Any) -> tuple[Space, ...]:
    recipe = recipe_with(*runs, search=Search(space, 3), **changes)
    return spaces_of(recipe, arms_of(recipe))


def test_a_row_has_what_its_method_and_its_run_can_be_set_to() -> None:
    rank, rate = {"low": 1, "high": 64}, {**RATES, "log": False}
    head, lora, tuned = spaces(
        Entry("head"), Entry("lora"), Entry("dora", space={"rank": [4, 8], "epochs": [1, 2]}),
        space={"learning_rate": rate, "rank": rank, "target_modules": [["query"], "all-linear"]},
    )  # fmt: skip
    rates = Range(1e-5, 1e-1, log=False, whole=False)
    assert head.settings == {"learning_rate": rates}
    places = Choices((["query"], "all-linear"))
    ranks = Range(1, 64, log=True, whole=True)
    assert lora.settings == {"learning_rate": rates, "rank": ranks, "target_modules": places}
    assert tuned.settings["rank"] == Choices((4, 8)) and "epochs" in tuned.settings
    assert str(lora) == (
        "learning_rate 1e-05 to 0.1; rank 1 to 64 in equal factors; target_modules query or "
        "all-linear"
    )


def test_a_row_with_settings_of_its_space() -> None:
    space = space_of(
        {
            **{"rank": [2, 8], "learning_rate": RATES, "epochs": [2, 5]},
            "target_modules": [["query", "value"], "all-linear"],
        },
        "lora:rank=8,alpha=4",
    )
    chosen = {"rank": 2, "learning_rate": 3e-3, "target_modules": ["query", "value"], "epochs": 5}
    arm = space.arm(chosen)
    assert arm.method == LoRA(rank=2, alpha=4, target_modules=("query", "value"))
    assert (arm.settings.learning_rate, arm.settings.epochs) == (3e-3, 5)
    # What the row has already stays as it is written, so that it is the run of other recipes too.
    assert space.arm({"rank": 8, "learning_rate": 5e-4}) == space.row
    assert space.start() == {"rank": 8, "learning_rate": 5e-4}
    both = space_of({"warmup": [0.1, 0.2]}, "adalora")
    assert both.arm({"warmup": 0.2}).method == AdaLoRA(warmup=0.2), "the method's, as in a grid"


def test_a_search_of_the_head_s_rate_starts_with_what_it_comes_to_where_none_is_asked_for() -> None:
    rates = {"head_learning_rate": Range(1e-4, 1e-1, log=True, whole=False)}
    arm = Arm("lora", LoRA(), TrainingSettings())
    assert Space(arm, rates).start() == {"head_learning_rate": 5e-3}
    probe = Space(arm, rates, head=HeadConfig("mean", head_start="probe"))
    assert probe.start() == {"head_learning_rate": LoRA.default_learning_rate}


def test_extremes_are_every_choice_and_every_end() -> None:
    space = space_of({"rank": [2, 4], "dropout": {"low": 0, "high": 0.5}})
    assert [arm.method for arm in space.extremes()] == [
        *(LoRA(rank=2), LoRA(rank=4), LoRA(), LoRA(dropout=0.5)),
    ]


def test_numbers_have_as_many_digits_as_tell_something() -> None:
    rates = Range(1.2345e-5, 1e-2, log=True, whole=False)
    assert rates.rounded(0.00123456) == 0.00123
    assert rates.rounded(1.2346e-5) == 1.2345e-5, "never outside"
    assert [rates.end_near(value) for value in (1.3e-5, 1e-3, 9e-3)] == ["lower", None, "upper"]


@pytest.mark.parametrize(
    ("space", "key", "sentence"),
    [
        ({"learning_rte": [1]}, "search.space.learning_rte", "Did you mean 'learning_rate'"),
        ({"rank": 8}, "search.space.rank", r"takes a list of values, such as \[2, 4, 8\], or a"),
        ({"rank": [8]}, "search.space.rank", "at least two values"),
        ({"rank": [8, 8]}, "search.space.rank", "stands there twice"),
        ({"rank": [0, 8]}, "search.space.rank", "at least 1; got 0"),
        ({"rank": {"low": 1.5, "high": 4}}, "search.space.rank.low", "takes a whole number"),
        ({"dropout": {"low": 0, "high": 1.0}}, "search.space.dropout", "below 1"),
        ({"dropout": {"low": 0, "high": 0.5, "log": True}}, "search.space.dropout.low", "above 0"),
        ({"dropout": {"low": 0.5, "high": 0.1}}, "search.space.dropout", "0.5, is not below"),
        ({"dropout": {"low": 0}}, "search.space.dropout", "'high' is missing"),
        ({"dropout": {"low": 0, "hihg": 1}}, "search.space.dropout.hihg", "Did you mean 'high'"),
        ({"schedule": {"low": 0, "high": 1}}, "search.space.schedule", "is no number"),
        ({"metric": ["accuracy", "loss"]}, "search.space.metric", "judges all trials by one"),
        ({"alpha": [4, 8]}, "search.space.alpha", r"grid of 'lora:alpha=2' goes through it too"),
        ({}, "search.space", "has no setting of any row"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_a_sentence_about_its_key(
    space: dict[str, Any], key: str, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence) as error:
        spaces(Entry("lora", grid={"alpha": [2]}), Entry("head"), space=space)
    assert str(error.value).startswith(f"{key}: ")


def test_what_does_not_go_with_a_search_is_a_sentence() -> None:
    rates = {"learning_rate": RATES}
    with pytest.raises(RecipeError, match="budget decides the size"):
        spaces(Entry("lora"), space={"rank": [2, 4]}, budget=1000)
    with pytest.raises(RecipeError, match=r"^runs.1: A search judges all rows by one metric"):
        spaces(Entry("lora"), Entry("head", settings={"metric": "loss"}), space=rates)
    recipe = recipe_with(Entry("lora", space=rates))
    with pytest.raises(RecipeError, match=r"^runs.0.space: There is no key 'search'"):
        spaces_of(recipe, arms_of(recipe))
    for wrong in ({"trials": 1}, {"trials": 5, "minutes": 0}, {"trials": 5, "parameters": 0}):
        with pytest.raises(UsageError, match=f"{[*wrong][-1]} must be"):
            Search(rates, **wrong)


def test_a_file_says_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT + SEARCH)
    recipe = read_recipe(path)
    assert recipe.search is not None and recipe.search.trials == 3
    changed = read_recipe(path, ["search.trials=9", "search.space.alpha=[1, 2]"])
    assert changed.search is not None and changed.search.space["alpha"] == [1, 2]


WRONG = {  # what is told → what is written in place of what
    "line 31: search.space.learning_rate.high: It takes a number": ("high: 1e-2", "high: x"),
    "line 33: search.space.alfa: There is no such key": ("alpha: [8, 16]", "alfa: [8, 16]"),
    "line 34: search.space.warmup.1: It takes a number": ("[0, 0.1]", "[0, much]"),
    "line 29: search.trials: trials must be a whole number": ("trials: 3", "trials: 0"),
    "line 29: search.trails: There is no such key here. Did you": ("trials: 3", "trails: 3"),
    "It takes one of none, successive-halving": ("trials: 3", "pruning: halving"),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_wrong_in_a_file_is_told_with_its_line(told: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT + SEARCH.replace(*WRONG[told]))
    with pytest.raises(UsageError, match=re.escape(told)):
        read_recipe(tmp_path / "tiny.yaml")


def test_the_example_of_the_document_is_a_search(tmp_path: Path) -> None:
    document = Path(__file__).parents[2] / "docs" / "recipes.md"
    example = document.read_text(encoding="utf-8").split("```yaml\n")[2].split("```")[0]
    path = tmp_path / "example.yaml"
    path.write_text(f"model: minilm\ndata: reviews.csv\n{example}")
    recipe = read_recipe(path)
    lora, full = spaces_of(recipe, arms_of(recipe))
    assert [*lora.settings] == ["learning_rate", "rank", "target_modules"]
    assert str(full) == "learning_rate 5e-06 to 0.0005 in equal factors"
    assert recipe.search is not None and (recipe.search.trials, recipe.search.minutes) == (8, 30)
