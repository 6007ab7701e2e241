"""Small experiments for the doctor, healthy unless something is planted in them.

Import as ``from tests.experiments.cases import case_of, healthy_rows``.
"""

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltafit.experiments.findings import Case, Finding
from deltafit.experiments.recipe import Entry, Recipe, entries_of, experiment_of
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data
from tests.training.tiny_runs import LABELS, WORDS

Rows = Sequence[tuple[str, str]]


def healthy_rows(count: int, *, start: int = 0) -> list[tuple[str, str]]:
    """Different texts of 4 to 9 words; each class has words of its own."""
    chosen = random.Random(start)
    rows = []
    for index in range(start, start + count):
        label = index % len(LABELS)
        words = [chosen.choice(WORDS[6 * label : 6 * label + 6]) for _ in range(2)]
        words += chosen.choices(WORDS[18:], k=chosen.randint(1, 6))
        rows.append((" ".join([*words, f"no{index}"]), LABELS[label]))
    return rows


def write_rows(path: Path, rows: Rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def recipe_of(
    folder: Path,
    *,
    train: Rows | None = None,
    test: Rows | None = None,
    runs: Sequence[str | Entry] = ("lora",),
    model: str = "none",
    head: HeadConfig = HeadConfig(),
    validation: str = "0.2",
    **settings: Any,
) -> Recipe:
    """Write the texts and return a recipe on them."""
    data = DataConfig(
        write_rows(folder / "train.csv", healthy_rows(240) if train is None else train),
        write_rows(folder / "test.csv", healthy_rows(30, start=240) if test is None else test),
        validation,
    )
    entries = tuple(Entry(run) if isinstance(run, str) else run for run in runs)
    made = TrainingSettings(**{"batch_size": 8, "max_length": 32, **settings})
    return Recipe("tiny", model, data, entries, head=head, settings=made)


def case_of(folder: Path, **planted: Any) -> Case:
    """What the doctor looks at in ``recipe_of`` the same."""
    recipe = recipe_of(folder, **planted)
    experiment = experiment_of(recipe)
    configs = tuple(experiment.runs_of(arm)[0] for arm in experiment.arms)
    return Case(recipe, experiment.arms, configs, entries_of(recipe), load_data(recipe.data))


def only(findings: Sequence[Finding]) -> Finding:
    """Return the one finding that there is."""
    assert len(findings) == 1, findings
    return findings[0]
