"""Doing those runs of a comparison jointly that can share a model, before the rest."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deltafit.data import Splits
from deltafit.errors import TrainingError, UsageError
from deltafit.training.accelerator import processes
from deltafit.training.config import RunConfig
from deltafit.training.features import FrozenFeatures
from deltafit.training.folders import begun, finished_metrics
from deltafit.training.identity import run_content
from deltafit.training.joined_run import execute_jointly, groups_to_join
from deltafit.training.progress import Reporter

Outcome = dict[str, Any] | TrainingError


def check_joinable(configs: Sequence[RunConfig]) -> None:
    """Raise a UsageError if nothing of a comparison can be trained jointly, or not here.

    Args:
        configs: the comparison's runs.
    """
    if processes().num_processes > 1:
        raise UsageError(
            f"Runs are trained jointly in one process; there are {processes().num_processes}. "
            "Start one, or leave --jointly out."
        )
    if configs[0].settings.precision == "fp16":
        raise UsageError("--jointly does not go with --precision fp16. Use bf16 or float32.")
    if not groups_to_join(configs):
        raise UsageError(
            "--jointly finds nothing to train jointly: it takes two runs of methods such as lora "
            "that train the same blocks. Give several such methods or --seeds, or leave it out."
        )


def run_joined(
    configs: Sequence[RunConfig],
    splits: Splits,
    folders: Mapping[RunConfig, Path],
    features: FrozenFeatures,
    reporter: Reporter,
    *,
    resume: bool,
) -> dict[RunConfig, Outcome]:
    """Do the runs that can be trained jointly; return their metrics, or why they failed.

    Runs that are finished already are left alone, and so is one that would be by itself.

    Args:
        configs: the comparison's runs.
        splits: the texts.
        folders: of the runs.
        features: of the same texts.
        reporter: told how the work goes.
        resume: go on with what was begun.
    """
    outcomes: dict[RunConfig, Outcome] = {}
    for group in groups_to_join(configs):
        with ExitStack() as stack:
            for config in group:
                content = run_content(config, splits)
                stack.enter_context(begun(folders[config], content, resume=resume))
            known = {config: finished_metrics(folders[config]) for config in group}
            left = [config for config in group if known[config] is None]
            if len(left) < 2:
                continue
            listed = "; ".join(f"{config.method}, seed {config.settings.seed}" for config in left)
            reporter.say(f"jointly: {listed}")
            results = execute_jointly(
                left, splits, [folders[config] for config in left],
                reporter=reporter, resume=resume, features=features,
                before={c.settings.seed: m["before"] for c, m in known.items() if m is not None},
            )  # fmt: skip
        for config, result in zip(left, results, strict=True):
            outcomes[config] = result if isinstance(result, TrainingError) else result.metrics
    return outcomes
