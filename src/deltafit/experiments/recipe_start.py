"""A recipe made ready: its runs, its texts and the store that the runs are in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltafit.data import Splits
from deltafit.errors import UsageError
from deltafit.experiments.arms import Experiment
from deltafit.experiments.joining import check_joinable
from deltafit.experiments.recipe import Recipe, experiment_of
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.store import Store
from deltafit.experiments.tracked import tracked_runs
from deltafit.training.config import RunConfig
from deltafit.training.train import check_methods, load_data


@dataclass(frozen=True)
class Prepared:
    """A recipe with its texts, and the store that its runs are in.

    Attributes:
        recipe: what is asked for.
        experiment: its runs.
        splits: the texts.
        store: of the runs.
    """

    recipe: Recipe
    experiment: Experiment
    splits: Splits
    store: Store


def prepared(recipe: str | Path | Recipe, output: str | Path, overrides: Sequence[str]) -> Prepared:
    """Read a recipe and its texts, and open its store.

    Raises:
        DeltafitError: as `run`.
    """
    recipe = recipe_of(recipe, overrides)
    experiment = experiment_of(recipe)
    splits, root = load_data(recipe.data), Path(output)
    tracked = tracked_runs(recipe.track, root / recipe.name, experiment)
    return Prepared(recipe, experiment, splits, Store(root, recipe.model, splits, tracked))


def recipe_of(recipe: str | Path | Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe that is given itself, or as a file.

    Raises:
        DeltafitError: the file cannot be read.
        UsageError: it is no recipe, or an override is none.
    """
    if not isinstance(recipe, Recipe):
        return read_recipe(recipe, overrides)
    if overrides:
        raise UsageError("Changes are for recipes in files; make another Recipe instead.")
    return recipe


def check_runs(configs: Sequence[RunConfig], *, jointly: bool) -> None:
    """Raise a DeltafitError if runs cannot be done so, before anything is computed."""
    for stored in dict.fromkeys(config.settings.base_weights for config in configs):
        check_methods([config for config in configs if config.settings.base_weights == stored])
    if jointly:
        check_joinable(configs)
