"""A tiny model and texts, a recipe on such, its runs, and reports without their pictures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltafit.experiments.judgement import Comparison
from deltafit.experiments.recipe_run import run
from deltafit.training.settings import DataConfig
from tests.experiments.recipes import tiny_recipe
from tests.training.tiny_runs import save_model, tables


@pytest.fixture(scope="module")
def no_images() -> Iterator[None]:
    """Plots take most of the time; the tests of reports have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return tables(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of three rows with two seeds, and its model and texts."""
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def done(recipe: Path, no_images: None, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """What it comes to, in the folder of its report within its store."""
    return run(recipe, tmp_path_factory.mktemp("done") / "store")
