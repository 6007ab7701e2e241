"""An experiment as its runs see it: the arms that are compared, each trained once a seed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deltafit.errors import UsageError
from deltafit.experiments.budget import sized_to
from deltafit.methods import Method
from deltafit.training.config import RunConfig
from deltafit.training.preparation import structure_of
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings


@dataclass(frozen=True)
class Arm:
    """One row of a comparison: a method with its hyperparameters.

    Attributes:
        name: of its row.
        method: what is trained.
        settings: the hyperparameters; their seed counts for nothing.
        remark: the first of the row's notes.
        searched: settings that a search has chosen, by name.
        trials: of that search.
    """

    name: str
    method: Method
    settings: TrainingSettings
    remark: str | None = None
    searched: tuple[str, ...] = ()
    trials: int = 0


@dataclass(frozen=True)
class Experiment:
    """Arms that are trained with the same seeds, on one model and the same texts.

    Attributes:
        model: path, catalogue name or hub name.
        data: where the texts come from.
        head: which head all of them train.
        arms: in the order of their rows.
        seeds: of each arm's runs; the splits stay the same.
    """

    model: str
    data: DataConfig
    head: HeadConfig
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    def runs_of(self, arm: Arm) -> list[RunConfig]:
        """Return an arm's runs, one a seed."""
        return [
            RunConfig(self.model, self.data, arm.method, self.head, replace(arm.settings, seed=s))
            for s in self.seeds
        ]

    def runs(self) -> list[RunConfig]:
        """Return all runs, arm by arm."""
        return [config for arm in self.arms for config in self.runs_of(arm)]

    def names(self) -> dict[RunConfig, str]:
        """Return what each run is called: as its row, with its seed if there are several."""
        several = len(self.seeds) > 1
        return {
            config: f"{arm.name}, seed {config.settings.seed}" if several else arm.name
            for arm in self.arms
            for config in self.runs_of(arm)
        }

    def varied(self) -> dict[str, dict[str, Any]]:
        """Return by each arm's name its hyperparameters in which the arms differ."""
        settings = {arm.name: asdict(self.runs_of(arm)[0].settings) for arm in self.arms}
        first = next(iter(settings.values()))
        differing = [
            key for key in first if any(each[key] != first[key] for each in settings.values())
        ]
        return {name: {key: each[key] for key in differing} for name, each in settings.items()}

    def facts(self) -> dict[str, Any]:
        """Return what a report says of how it was done, as JSON values."""
        first = asdict(self.runs()[0].settings)
        varied = self.varied()
        differing = varied[self.arms[0].name]
        facts: dict[str, Any] = {"model": self.model, "head": asdict(self.head)}
        facts["settings"] = {key: value for key, value in first.items() if key not in differing}
        if differing:
            facts["settings_by_row"] = varied
        return facts


def sized(arms: Sequence[Arm], budget: int, model: str, head: HeadConfig) -> tuple[Arm, ...]:
    """Give every arm's method the size that comes nearest to a budget; see `sized_to`.

    A row that goes by its method's text is called by that of the sized one.

    Raises:
        DeltafitError: a method does not fit the model.
        UsageError: a method trains more than twice the budget at its smallest size.
    """
    found = sized_to(budget, [arm.method for arm in arms], *structure_of(model, head))
    return tuple(
        replace(
            arm,
            name=arm.name.replace(str(arm.method), str(each.method), 1),
            method=each.method,
            remark=each.note,
        )
        for arm, each in zip(arms, found, strict=True)
    )


def check_distinct(what: str, values: Sequence[object]) -> None:
    """Raise a UsageError if there is no value, or one twice."""
    if not values:
        raise UsageError(f"Give at least one {what} to compare.")
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise UsageError(f"The {what} {twice[0]} is given twice; the runs would be the same.")
