"""Doing those runs of a comparison jointly that can share a model, before the rest."""

from collections.abc import Sequence
from contextlib import ExitStack

from deltafit.data import Splits
from deltafit.errors import TrainingError, UsageError
from deltafit.experiments.running import Outcome, RunFolders, SharedFeatures
from deltafit.training.accelerator import processes
from deltafit.training.config import RunConfig
from deltafit.training.joined_run import execute_jointly, groups_to_join
from deltafit.training.progress import Reporter


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
    folders: RunFolders,
    features: SharedFeatures,
    reporter: Reporter,
) -> dict[RunConfig, Outcome]:
    """Do the runs that can be trained jointly; return their metrics, or why they failed.

    Runs that are finished already are left alone, and so are those that another process is at, and
    one that would be by itself.

    Args:
        configs: the comparison's runs.
        splits: the texts.
        folders: of the runs.
        features: of the same texts.
        reporter: told how the work goes.
    """
    outcomes: dict[RunConfig, Outcome] = {}
    for group in groups_to_join(configs):
        with ExitStack() as stack:
            ours = [c for c in group if stack.enter_context(folders.begun(c, wait=False))]
            known = {config: folders.outcome(config) for config in ours}
            left = [config for config in ours if known[config] is None]
            if len(left) < 2:
                continue
            reporter.say(f"jointly: {'; '.join(config.label for config in left)}")
            results = execute_jointly(
                left, splits, [folders.folder(config) for config in left],
                reporter=reporter, resume=folders.resume, features=features.of(left[0]),
                before={
                    config.settings.seed: outcome["before"]
                    for config, outcome in known.items() if isinstance(outcome, dict)
                },
            )  # fmt: skip
            for config, result in zip(left, results, strict=True):
                if isinstance(result, TrainingError):
                    folders.failed(config, result)
        for config, result in zip(left, results, strict=True):
            outcomes[config] = result if isinstance(result, TrainingError) else result.metrics
    return outcomes
