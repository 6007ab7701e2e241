"""``runs.csv``: one line a run, with the columns that published sweeps are kept in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltafit.errors import TrainingError
from deltafit.experiments.arms import Arm, Experiment
from deltafit.experiments.forms import csv_text
from deltafit.experiments.running import Outcome
from deltafit.training.config import RunConfig

COLUMNS = (
    *("name", "rank", "alpha", "trainable_layers", "lr", "head_lr", "weight_decay"),
    "num_epochs",
    *("pre_train_acc", "pre_val_acc", "pre_test_acc"),
    *("final_train_acc", "final_val_acc", "final_test_acc"),
    *("train_loss_last", "val_loss_last", "examples_seen", "minutes"),
    *("final_test_acc_without_duplicates", "final_test_macro_f1"),
    *("trainable_parameters", "seed", "method", "failure", "folder"),
)
_PARTS = {"train": "train", "val": "validation", "test": "test"}


def runs_csv(
    experiment: Experiment,
    outcomes: Mapping[RunConfig, Outcome],
    folders: Mapping[RunConfig, Path],
) -> str:
    """Return the runs as CSV; what is not known of one is empty.

    Minutes are of training alone. Accuracies of the training part are there if
    ``judge_training`` asked for them.

    Args:
        experiment: its runs get a line each.
        outcomes: of all of them.
        folders: where they are, as the table has it.
    """
    unknown = dict.fromkeys(COLUMNS, "")
    return csv_text(
        [
            unknown
            | _asked(arm, config)
            | _came_to(outcomes[config])
            | {"folder": folders[config].as_posix()}
            for arm in experiment.arms
            for config in experiment.runs_of(arm)
        ]
    )


def _asked(arm: Arm, config: RunConfig) -> dict[str, Any]:
    settings, method = config.settings, config.method
    return {
        "name": arm.name,
        "rank": getattr(method, "rank", ""),
        "alpha": getattr(method, "alpha", ""),
        "trainable_layers": method.result_name,
        "lr": config.learning_rate,
        "weight_decay": settings.weight_decay,
        "num_epochs": settings.epochs,
        "seed": settings.seed,
        "method": str(method),
    }


def _came_to(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, TrainingError):
        return {"failure": outcome.what}
    costs, after = outcome["costs"], outcome["after"]
    line = {
        f"{when}_{short}_acc": outcome[key][part]["accuracy"]
        for when, key in (("pre", "before"), ("final", "after"))
        for short, part in _PARTS.items()
        if part in outcome[key]
    }
    test = after.get("test", {})
    return {
        **line,
        "head_lr": outcome["head_learning_rate"],
        "train_loss_last": _last(outcome["history"], "train_loss"),
        "val_loss_last": _last(outcome["history"], "loss"),
        "examples_seen": costs["examples_seen"],
        "minutes": round(costs["training_seconds"] / 60, 4),
        "final_test_acc_without_duplicates": test.get("without_duplicates", {}).get("accuracy", ""),
        "final_test_macro_f1": test.get("macro_f1", ""),
        "trainable_parameters": costs["trainable_parameters"],
    }


def _last(history: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((entry[key] for entry in reversed(history) if key in entry), "")
