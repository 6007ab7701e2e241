"""Several runs from their configurations to their folders, trained jointly on one base model."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from deltafit.adapters import activate, adapt, check_fits, remove_adapter
from deltafit.adapters.structure import repeated_blocks
from deltafit.data import Splits
from deltafit.engine import StateStores
from deltafit.errors import TrainingError, UsageError
from deltafit.files import write_json_atomically
from deltafit.methods import Head, LayerMethod
from deltafit.prediction.folder import prove_saved
from deltafit.training.accelerator import make_accelerator, mixed_precision_of
from deltafit.training.checkpoints import latest_checkpoint
from deltafit.training.config import RunConfig
from deltafit.training.features import FrozenFeatures
from deltafit.training.folders import METRICS_FILE
from deltafit.training.joined import JoinedLoop, JoinedRun
from deltafit.training.looking import look_at_texts
from deltafit.training.memory import give_back_memory, measured_memory
from deltafit.training.preparation import Prepared, load_for, prepare, structure_of
from deltafit.training.progress import Reporter
from deltafit.training.results import judge_parts, judged_parts, write_results
from deltafit.training.run import RunResult
from deltafit.training.sharing import SHARED, check_shared

_BEFORE = "before"  # the adapter with the head that a run starts from, and nothing else


def execute_jointly(
    configs: Sequence[RunConfig],
    splits: Splits,
    folders: Sequence[Path],
    *,
    reporter: Reporter,
    resume: bool = False,
    features: FrozenFeatures | None = None,
    before: Mapping[int, dict[str, Any]] | None = None,
) -> list[RunResult | TrainingError]:
    """Train, evaluate and save several runs that share their base model's passes.

    Each folder ends up as ``execute`` leaves it. The metrics say ``joined``, how many runs were
    trained together; a run's seconds are its share of theirs, by rows, and the peak of memory is
    that of them all. Checkpoints are those of single runs, so each can also be resumed by itself.

    Args:
        configs: runs of one model, texts and head, each with a method that learns deltas.
        splits: the texts that they describe.
        folders: of each run; ``run.json`` stands there already.
        reporter: told how the work goes.
        resume: go on from each run's newest checkpoint.
        features: frozen features of the same splits, if some are there already.
        before: the untouched model's metrics by seed, as far as they are known.

    Returns:
        For each run its result, or why its training failed.

    Raises:
        DeltafitError: the input cannot be used, or a saved adapter does not come back as it was
            trained.
        UsageError: the runs cannot be trained jointly.
        Interrupted: the person asked to stop; the runs can be resumed.
    """
    check_joined(configs)
    give_back_memory()
    first = configs[0]
    states = features.states if features is not None else None
    features = features or FrozenFeatures(first.model, splits, first.settings.max_length, reporter)
    mixed = mixed_precision_of(first.settings.precision, first.method)
    accelerator = make_accelerator(mixed)
    outcomes = _run(
        configs, splits, folders, reporter, accelerator, features, states, resume, before or {}
    )
    accelerator.free_memory()  # of the trained model: the proofs load its base once more
    for folder, outcome in zip(folders, outcomes, strict=True):
        if not isinstance(outcome, TrainingError):
            prove_saved(folder / "adapter")
            write_json_atomically(folder / METRICS_FILE, outcome)
    return [
        outcome if isinstance(outcome, TrainingError) else RunResult(folder, outcome)
        for folder, outcome in zip(folders, outcomes, strict=True)
    ]


def groups_to_join(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Return the groups of at least two runs that can be trained jointly, in the runs' order.

    They are those whose methods leave the base as it is, whose passes are alike, and below whose
    trained layers the same blocks are frozen.

    Args:
        configs: runs of one model, texts and head.

    Raises:
        DeltafitError: a method does not fit the model.
    """
    structure, head = structure_of(configs[0].model, configs[0].head)
    stacks = repeated_blocks(structure)
    groups: dict[object, list[RunConfig]] = {}
    for config in configs:
        if isinstance(config.method, LayerMethod) and not config.method.apart:
            targets, replaced = check_fits(structure, config.method, head=head)
            trained = (*targets, *replaced)
            places = [[stack.index_of(name) for stack in stacks] for name in trained]
            indices = [index for place in places for index in place if index is not None]
            outside = frozenset(
                name
                for name, place in zip(trained, places, strict=True)
                if all(index is None for index in place)
            )
            shared = tuple(getattr(config.settings, name) for name in SHARED)
            key = (shared, min(indices, default=None), outside)
            groups.setdefault(key, []).append(config)
    return [group for group in groups.values() if len(group) > 1]


def check_joined(configs: Sequence[RunConfig]) -> None:
    """Raise a UsageError unless these runs can be trained jointly; it says why not."""
    check_shared([config.settings for config in configs])
    first = configs[0]
    for config in configs:
        if not isinstance(config.method, LayerMethod):
            raise UsageError(
                f"{config.method} trains parameters of the model itself, which runs that are "
                "trained jointly share. Train it by itself."
            )
        if config.method.apart:
            raise UsageError(
                f"{config.method} {config.method.apart}, so it cannot share passes with other "
                "runs. Train it by itself."
            )
        if (config.model, config.data, config.head) != (first.model, first.data, first.head):
            raise UsageError(
                "Runs that are trained jointly share the model, the texts and the kind of head. "
                "Give all the same, or train them one after another."
            )


def _run(
    configs: Sequence[RunConfig],
    splits: Splits,
    folders: Sequence[Path],
    reporter: Reporter,
    accelerator: Accelerator,
    features: FrozenFeatures,
    states: StateStores | None,
    resume: bool,
    before: Mapping[int, dict[str, Any]],
) -> list[dict[str, Any] | TrainingError]:
    """Do what ``execute_jointly`` says; return each run's metrics, or why it failed."""
    methods = [config.method for config in configs]
    run = prepare(configs[0], splits, features, reporter, others=methods[1:])
    run.classifier.model.to(accelerator.device)
    names = [f"run{number}" for number in range(len(configs))]
    heads = heads_of(configs, run, splits, features)
    before = _before(configs, heads, run, splits, reporter, before)
    seconds = adapt_runs(configs, names, heads, run, reporter)
    checkpoints = {
        name: checkpoint
        for name, folder in zip(names, folders, strict=True)
        if resume and (checkpoint := latest_checkpoint(folder / "checkpoints")) is not None
    }
    with measured_memory() as peak:
        loop = JoinedLoop(
            run.classifier, run.examples["train"], run.examples.get("validation"),
            {
                name: JoinedRun(
                    config.decided_settings(new_head=run.classifier.new_head),
                    config.learning_rate,
                    folder / "checkpoints",
                    config.label,
                )
                for name, config, folder in zip(names, configs, folders, strict=True)
            },
            reporter=reporter, accelerator=accelerator, states=states,
        )  # fmt: skip
        failures = loop.run(checkpoints)
    outcomes: list[dict[str, Any] | TrainingError] = []
    for name, config, folder in zip(names, configs, folders, strict=True):
        if name in failures:
            outcomes.append(failures[name])
            continue
        activate(run.classifier.model, name)
        loop.learners[name].course.seconds += seconds[name]
        metrics = write_results(
            config, run, splits, folder, reporter, accelerator,
            before=before[config.settings.seed], course=loop.learners[name].course,
            peak=peak.without(loop.constant.others_bytes), joined=len(configs),
        )  # fmt: skip
        outcomes.append({**metrics, "joined": len(configs), "expected_memory": None})
    return outcomes


def heads_of(
    configs: Sequence[RunConfig], run: Prepared, splits: Splits, features: FrozenFeatures
) -> dict[int, dict[str, Tensor]]:
    """Return the head that each seed gives, by its parameters' names."""
    shared = run.classifier
    heads: dict[int, dict[str, Tensor]] = {}
    for config in configs:
        seed = config.settings.seed
        if seed not in heads:
            source = load_for(config, splits, features) if heads else shared
            heads[seed] = {
                name: source.model.get_parameter(name).detach().clone()
                for name in shared.head_parameters
            }
    return heads


def _before(
    configs: Sequence[RunConfig],
    heads: Mapping[int, dict[str, Tensor]],
    run: Prepared,
    splits: Splits,
    reporter: Reporter,
    known: Mapping[int, dict[str, Any]],
) -> dict[int, dict[str, Any]]:
    """Return the untouched model's metrics by seed, each with that seed's head."""
    before, model = dict(known), run.classifier.model
    for config in configs:
        seed = config.settings.seed
        if seed not in before:
            adapt(model, Head(), name=_BEFORE, head=run.classifier.head_parameters,
                  initial=heads[seed])  # fmt: skip
            before[seed], _ = judge_parts(
                "before training", judged_parts(config, run), config, run, splits, reporter
            )
            remove_adapter(model, _BEFORE)
    return before


def adapt_runs(
    configs: Sequence[RunConfig],
    names: Sequence[str],
    heads: Mapping[int, dict[str, Tensor]],
    run: Prepared,
    reporter: Reporter,
) -> dict[str, float]:
    """Put every run's adapter on the one model, with the head that its own seed gives.

    Returns:
        The seconds that looking at texts took, by the runs' names.
    """
    shared, seconds = run.classifier, {}
    for name, config in zip(names, configs, strict=True):
        seed, began = config.settings.seed, time.perf_counter()
        statistics = look_at_texts(
            shared, run.examples["train"], config.method, config.settings, reporter,
            head=heads[seed], rounding=run.rounding,
        )  # fmt: skip
        seconds[name] = time.perf_counter() - began
        adapt(
            shared.model, config.method, name=name, seed=seed,
            head=shared.head_parameters, initial=heads[seed], statistics=statistics,
        )  # fmt: skip
    run.rounding.clear()
    return seconds
