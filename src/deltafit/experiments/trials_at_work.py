"""The trials of a recipe's search that go on, in whichever process, as their folders have it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from deltafit.errors import DeltafitError
from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe_start import Prepared
from deltafit.experiments.search_space import Space, present, spaces_of, written
from deltafit.experiments.standing import RunStanding
from deltafit.files import read_json
from deltafit.training.config import RunConfig
from deltafit.training.folders import RUN_FILE
from deltafit.training.noting import PROGRESS_FILE, noted


def trials_at_work(made: Prepared) -> Iterator[RunStanding]:
    """Yield the trials that go on now, but for those that are rows as the recipe has them.

    A store may be shared: runs that others do there, and that are no trial of this search, are
    left out.
    """
    if made.recipe.search is None:
        return
    spaces = [s for s in spaces_of(made.recipe, made.experiment.arms) if s.settings]
    rows = {made.store.folder(config) for config in made.experiment.runs()}
    for path in sorted(made.store.root.glob(f"runs/*/{PROGRESS_FILE}")):
        note = None if path.parent in rows else noted(path.parent)
        if note is not None and (name := _name(path.parent, spaces, made.recipe.seeds[0])):
            yield RunStanding(name, "running", note)


def _name(folder: Path, spaces: list[Space], seed: int) -> str | None:
    """Return the row whose trial a run is, and with which settings; None if it is none."""
    with suppress(DeltafitError, AttributeError, KeyError, TypeError):  # another version's, or gone
        config = RunConfig.from_dict(read_json(folder / RUN_FILE)["config"])
        for space in spaces:
            row = space.row
            if config.settings.seed != seed or type(config.method) is not type(row.method):
                continue
            settings = replace(config.settings, seed=row.settings.seed)
            trial = Arm(row.name, config.method, settings, row.remark)
            chosen = {name: present(trial, name) for name in space.settings}
            if space.arm(chosen) == trial:
                return f"{row.name}: {written(chosen)}"
    return None
