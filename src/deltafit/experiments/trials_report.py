"""How a report shows a search: every trial as CSV, and a section with what was chosen and why."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deltafit.experiments.forms import csv_text
from deltafit.experiments.page_parts import Part, Section, Table
from deltafit.experiments.rate_plot import rate_plot
from deltafit.experiments.search import Search
from deltafit.experiments.search_space import written
from deltafit.experiments.tables import NOTHING, format_metric, format_seconds, metric_title
from deltafit.experiments.trials import Trial
from deltafit.experiments.tuning import TunedRow


def trials_csv(rows: Sequence[TunedRow], metric: str, folder_of: Callable[[Trial], Path]) -> str:
    """Return the trials of a search as CSV, a line each.

    Args:
        rows: that were searched for.
        metric: that the trials were judged by.
        folder_of: where a trial's run is, as the table has it.
    """
    names = dict.fromkeys(name for row in rows for name in row.space.settings)
    return csv_text(
        [
            {
                **{"row": row.space.row.name, "trial": trial.number, "state": trial.state},
                "chosen": str(trial is row.chosen).lower(),
                **{name: written({name: trial.chosen[name]}).partition("=")[2]
                   if name in trial.chosen else "" for name in names},
                f"validation_{metric}": "" if trial.result is None else trial.result[0],
                "validation_log_loss": "" if trial.result is None else trial.result[1],
                "evaluations": " ".join(f"{figure:.6g}" for figure in trial.figures),
                **{"epochs": f"{trial.epochs:g}", "minutes": round(trial.seconds / 60, 4)},
                "method": str(trial.arm.method),
                "folder": folder_of(trial).as_posix(),
            }
            for row in rows
            for trial in row.trials
        ]
    )  # fmt: skip


def search_section(
    rows: Sequence[TunedRow], search: Search, metric: str, seed: int, *, tested: bool
) -> Section:
    """Return what a report says of its search.

    Args:
        rows: that were searched for.
        search: how.
        metric: that the trials were judged by.
        seed: of the trials.
        tested: whether the rows that judge the report are others than those that chose.
    """
    title = metric_title([{"metric_name": metric}])
    chosen = Table(
        ["row", "trials", "pruned", "failed", "training", "chosen", f"validation {title}"],
        [_line(row, metric) for row in rows],
    )
    tried = Table(
        ["row, trial", "settings", "state", "epochs", "training", f"validation {title}"],
        [_trial(row, trial, metric) for row in rows for trial in row.trials],
    )
    parts = [Part("What was chosen for each row.", table=chosen)]
    if any("learning_rate" in row.space.settings for row in rows):
        caption = (
            f"Validation {title} against the learning rate, one panel a row: the chosen trial is "
            "the star, hollow ones were pruned."
        )
        parts.append(Part(caption, partial(rate_plot, rows, metric)))
    parts.append(Part("Every trial; trials.csv has them too.", table=tried, folded=True))
    return Section(
        "search", "How the settings were chosen", _text(search, metric, seed, tested), parts
    )


def search_facts(rows: Sequence[TunedRow], search: Search) -> dict[str, Any]:
    """Return what was searched, as JSON values."""
    return {
        "space": {row.space.row.name: str(row.space) for row in rows},
        **{key: getattr(search, key) for key in ("trials", "minutes", "parameters", "pruning")},
    }


def _text(search: Search, metric: str, seed: int, tested: bool) -> str:
    named = metric.replace("_", " ")
    sentences = [
        f"Each row had up to {search.trials} trials of its own. The one with the best {named} on "
        "the validation rows was chosen (of equal ones that with the least log loss).",
        "The rows that judge this report had no part in it."
        if tested
        else "There are no test rows: the rows that chose judge this report too, which flatters "
        "every figure in it.",
        "The first trial is the row as it is written, where that lies in the space; the others "
        f"are what Optuna's TPE sampler proposed. Trials are runs with seed {seed}, and the "
        "chosen one is the row's run with that seed.",
    ]
    if search.pruning == "successive-halving":
        sentences.append(
            "Successive halving pruned a trial after its first, second, fourth … evaluation if it "
            "was not in the better half of those that came so far."
        )
    if search.minutes is not None:
        sentences.append(
            f"A row began no further trial after {search.minutes:g} minutes of training."
        )
    if search.parameters is not None:
        sentences.append(
            f"Sizes that train more than {search.parameters:,} parameters besides the head were "
            "left out."
        )
    return " ".join(sentences)


def _line(row: TunedRow, metric: str) -> list[str]:
    states = [trial.state for trial in row.trials]
    chosen = row.chosen
    return [
        row.space.row.name,
        *(str(count) for count in (len(states), states.count("pruned"), states.count("failed"))),
        format_seconds(sum(trial.seconds for trial in row.trials)),
        NOTHING if chosen is None else written(chosen.chosen),
        NOTHING if chosen is None else format_metric(_figure(chosen), metric),
    ]


def _trial(row: TunedRow, trial: Trial, metric: str) -> list[str]:
    return [
        f"{row.space.row.name}, {trial.number + 1}",
        written(trial.chosen),
        "chosen" if trial is row.chosen else trial.state,
        f"{trial.epochs:.3g}",
        format_seconds(trial.seconds),
        format_metric(_figure(trial), metric),
    ]


def _figure(trial: Trial) -> float | None:
    """Return a trial's figure: of the checkpoint it keeps, or where it was pruned."""
    if trial.result is not None:
        return trial.result[0]
    return trial.figures[-1] if trial.figures else None
