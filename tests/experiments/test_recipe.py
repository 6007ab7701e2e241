"""What a recipe means: its rows, their names, and each run once."""

from dataclasses import fields
from itertools import product
from typing import Any

import pytest

from deltafit.errors import UsageError
from deltafit.experiments.recipe import Entry, Recipe, arms_of, experiment_of
from deltafit.methods import METHODS, AdaLoRA, Full, Head, LastBlocks, LoRA
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from tests.training.tiny_runs import save_model


def recipe(*runs: Entry, **changes: Any) -> Recipe:
    return Recipe(**{"name": "r", "model": "m", "data": DataConfig("d"), "runs": runs} | changes)


def names(*runs: Entry, **changes: Any) -> list[str]:
    return [arm.name for arm in arms_of(recipe(*runs, **changes))]


def test_a_grid_is_every_combination_with_every_seed() -> None:
    grid: dict[str, list[Any]] = {"rank": [4, 8], "alpha": [4, 8, 16], "learning_rate": [1e-3]}
    made = recipe(Entry("lora:dropout=0.1", grid=grid), Entry("head"), seeds=(3, 1))
    experiment = experiment_of(made)
    found = {
        (config.method, config.settings.learning_rate, config.settings.seed)
        for config in experiment.runs()
    }
    expected = {
        (LoRA(rank=rank, alpha=alpha, dropout=0.1), 1e-3, seed)
        for rank, alpha, seed in product((4, 8), (4, 8, 16), (3, 1))
    }
    assert found == expected | {(Head(), None, seed) for seed in (3, 1)}
    assert len(experiment.runs()) == 14  # and none twice
    assert [config.settings.seed for config in experiment.runs_of(experiment.arms[0])] == [3, 1]


def test_values_of_a_grid_are_read_as_people_write_methods() -> None:
    grid: dict[str, list[Any]] = {
        "target_modules": ["query+value", ["query", "value", "key"], "all-linear", None],
        "rank_pattern": [{"query": 4}],
    }
    methods = [arm.method for arm in arms_of(recipe(Entry("lora", grid=grid)))]
    assert methods == [
        LoRA(target, rank_pattern=(("query", 4),))
        for target in (("query", "value"), ("query", "value", "key"), "all-linear", None)
    ]


def test_settings_of_an_entry_go_over_those_of_the_recipe() -> None:
    shared = TrainingSettings(epochs=7, weight_decay=0.5)
    entry = Entry("full", settings={"epochs": 2}, grid={"batch_size": [4]})
    (arm,) = arms_of(recipe(entry, settings=shared))
    assert arm.method == Full()
    assert arm.settings == TrainingSettings(epochs=2, weight_decay=0.5, batch_size=4)


def test_rows_are_named_by_what_tells_them_apart() -> None:
    runs = [
        Entry("lora", grid={"learning_rate": [1e-3, 1e-4]}),
        Entry("lora:rank=4", settings={"learning_rate": 1e-3}),
        Entry("lora:rank=2", name="small"),
        Entry("last-block", name="{count} blocks", grid={"count": [1, 2]}),
    ]
    assert names(*runs) == [
        "lora learning_rate=0.001", "lora learning_rate=0.0001", "lora:rank=4", "small",
        "1 blocks", "2 blocks",
    ]  # fmt: skip


def test_what_method_and_run_have_both_is_the_methods() -> None:
    of_runs = {field.name for field in fields(TrainingSettings)}
    both = {
        (name, field.name)
        for name, method in METHODS.items()
        for field in fields(method)
        if field.name in of_runs
    }
    assert both == {("adalora", "warmup")}
    (arm,) = arms_of(recipe(Entry("adalora", grid={"warmup": [0.2]})))
    assert arm.method == AdaLoRA(warmup=0.2) and arm.settings == TrainingSettings()


@pytest.mark.parametrize(
    ("entry", "key", "sentence"),
    [
        (Entry("loar"), "runs.1.method", "Did you mean 'lora'"),
        (Entry("lora:rank=0.2"), "runs.1.method", "sparse:density=0.2"),
        (Entry("lora", grid={"rank": [4, 0.2]}), "runs.1.grid.rank", "sparse:density=0.2"),
        (Entry("lora:rank=2", grid={"rank": [4]}), "runs.1.grid", "set twice"),
        (Entry("lora", grid={"rnak": [4]}), "runs.1.grid.rnak", "Did you mean 'rank'"),
        (Entry("lora", grid={"rank": []}), "runs.1.grid.rank", "no value to try"),
        (Entry("lora", grid={"seed": [1]}), "runs.1.grid.seed", "no such key"),
        (Entry("lora", grid={"epochs": [0]}), "runs.1.grid.epochs", "at least 1; got 0"),
        (Entry("lora", settings={"epoch": 3}), "runs.1.settings.epoch", "mean 'epochs'"),
        (Entry("lora", settings={"rank": 3}), "runs.1.settings.rank", "no such key"),
        (Entry("lora", settings={"warmup": 2}), "runs.1.settings.warmup", "below 1; got 2"),
        (Entry("lora", name="{rank}"), "runs.1.name", "stands for nothing"),
        (Entry("lora", name="{rank", grid={"rank": [1]}), "runs.1.name", "is no name"),
        (Entry("lora", name="x", grid={"rank": [1, 2]}), "runs.1", "called 'x' too"),
        (Entry("lora", name="head"), "runs.1", "called 'head' too"),
        (Entry("head"), "runs.1", "the same run as 'head'"),
        (Entry("lora", grid={"rank": [2, 2]}), "runs.1", "the same run as 'lora:rank=2'"),
    ],
)
def test_an_entry_that_means_nothing_says_where(entry: Entry, key: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        arms_of(recipe(Entry("head"), entry))
    assert str(error.value).startswith(f"{key}: ") and sentence in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "a/b"}, "name: The name is a folder's"),
        ({"name": "runs"}, "got 'runs'"),
        ({"runs": ()}, "runs: There is nothing to run"),
        ({"seeds": ()}, "seeds: Give at least one seed"),
        ({"seeds": (1, 1)}, "seeds: The seed 1 is given twice"),
        ({"seeds": (-1,)}, "seeds: seed must be a whole number"),
        ({"settings": TrainingSettings(seed=1)}, "settings.seed: A recipe has its seeds"),
        ({"budget": 0}, "budget: It takes at least 1"),
    ],
)
def test_what_is_no_recipe_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        recipe(**{"runs": (Entry("head"),)} | changes)


def test_a_budget_sizes_the_methods_and_their_names(tmp_path: Any) -> None:
    model = save_model(tmp_path / "model")
    runs = (Entry("lora"), Entry("lora:target_modules=all-linear", name="all"), Entry("last-block"))
    made = recipe(*runs, model=model, budget=2000, head=HeadConfig("mean"))
    first, second, third = experiment_of(made).arms
    assert first.name == str(first.method) != "lora"
    assert second.name == "all" and "comes nearest to the budget" in (second.remark or "")
    assert third.method == LastBlocks()
    # Two sizes of one method come out as the same run.
    same = recipe(Entry("lora:rank=2"), Entry("lora:rank=4"), model=model, budget=2000)
    with pytest.raises(UsageError, match="is given twice"):
        experiment_of(same)
