"""Searches without training: rows, and runs whose figures a formula gives.

Import as ``from tests.experiments.searches import recipe_with, Formula``.
"""

import math
from collections.abc import Mapping
from typing import Any

from deltafit.experiments.arms import Arm
from deltafit.experiments.recipe import Entry, Recipe, arms_of
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import Space, present, spaces_of
from deltafit.experiments.trials import Came, Trial, trials_of
from deltafit.tasks.metrics import Metric, find_metric
from deltafit.training.loop import Halt
from deltafit.training.settings import DataConfig

RATES = {"low": 1e-5, "high": 1e-1}


def recipe_with(*runs: Entry, search: Search | None = None, **changes: Any) -> Recipe:
    known = {"name": "r", "model": "m", "data": DataConfig("d"), "runs": runs, "search": search}
    return Recipe(**known | changes)


def space_of(values: Mapping[str, Any], method: str = "lora") -> Space:
    recipe = recipe_with(Entry(method), search=Search(dict(values), 2))
    (space,) = spaces_of(recipe, arms_of(recipe))
    return space


class Formula:
    """Runs of five evaluations that are the better the nearer their rate is to 3e-3.

    A rate above ``limit`` diverges before its third evaluation. What was done is kept, as in a
    store; after so many evaluations somebody presses Ctrl-C.
    """

    def __init__(self, limit: float = 1, most: int = 10_000) -> None:
        self.kept: dict[Any, list[dict[str, Any]]] = {}
        self.evaluations, self._limit, self._most = 0, limit, most

    def __call__(self, arm: Arm, halt: Halt) -> Came:
        rate = present(arm, "learning_rate")
        diverges, history = rate > self._limit, self.kept.setdefault((arm.method, arm.settings), [])
        while len(history) < (2 if diverges else 5) and not (history and halt(history)):
            if self.evaluations == self._most:
                raise KeyboardInterrupt
            self.evaluations += 1
            history.append(self.entry(rate, len(history) + 1))
        finished = len(history) == 5
        failed = diverges and len(history) == 2
        return Came(history, 10 * len(history), 6.0 * len(history), finished, failed)

    @staticmethod
    def entry(rate: float, number: int) -> dict[str, Any]:
        figure = 1 / (1 + abs(math.log10(rate / 3e-3))) * (1 - 0.5**number)
        return {"step": 10 * number, "epoch": number, "accuracy": figure, "log_loss": 1 - figure}


def searched(
    space: Space, search: Search, run: Formula, seed: int = 0, metric: Metric | None = None
) -> list[Trial]:
    metric = metric or find_metric("accuracy")
    return list(trials_of(space, search, metric, seed, run, lambda _: True))
