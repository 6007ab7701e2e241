"""One run from its configuration to metrics, costs and an adapter on disk."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deltafit.adapters import adapt
from deltafit.data import Splits
from deltafit.engine import StateStores
from deltafit.files import write_json_atomically
from deltafit.methods import LayerMethod
from deltafit.prediction.folder import prove_saved
from deltafit.training.accelerator import make_accelerator, mixed_precision_of
from deltafit.training.checkpoints import Checkpoint, latest_checkpoint
from deltafit.training.config import RunConfig
from deltafit.training.costs import expected_memory
from deltafit.training.course import Course
from deltafit.training.features import FrozenFeatures
from deltafit.training.folders import METRICS_FILE, finished_metrics
from deltafit.training.looking import look_at_texts
from deltafit.training.loop import Halt, TrainingLoop
from deltafit.training.memory import PeakMemory, give_back_memory, measured_memory
from deltafit.training.preparation import Prepared, prepare
from deltafit.training.progress import Reporter
from deltafit.training.results import judge_parts, judged_parts, write_results
from deltafit.training.settings import HeadConfig
from deltafit.training.tracking import Tracking, started_trackers


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: holds ``run.json``, ``metrics.json``, ``predictions.safetensors``,
            ``checkpoints/`` and ``adapter/``.
        metrics: the content of ``metrics.json``.
    """

    folder: Path
    metrics: dict[str, Any]


def execute(
    config: RunConfig,
    splits: Splits,
    folder: Path,
    *,
    reporter: Reporter,
    resume: bool = False,
    tracking: Tracking | None = None,
    features: FrozenFeatures | None = None,
    before: dict[str, Any] | None = None,
    halt: Halt | None = None,
) -> RunResult:
    """Train, evaluate and save one run.

    Args:
        config: what to run.
        splits: the texts that ``config.data`` describes.
        folder: the run's folder; ``run.json`` stands there already.
        reporter: told how the work goes.
        resume: go on from the newest checkpoint.
        tracking: what else gets its numbers.
        features: frozen features of the same splits, if some are there already.
        before: the untouched model's metrics, if a run with the same seed and head has them.
        halt: asked after each evaluation but the last whether to leave the run unfinished.

    Raises:
        DeltafitError: the input cannot be used, training failed, or the saved adapter does not
            come back as it was trained; nothing half-made is left beside the checkpoints.
        Interrupted: the person asked to stop; the run can be resumed.
        Halted: ``halt`` said so; the run can be resumed.
    """
    give_back_memory()
    # A run by itself gives the states of frozen layers back as soon as it is trained.
    states = features.states if features is not None else None
    features = features or FrozenFeatures(
        config.model, splits, config.settings.max_length, reporter
    )
    mixed = mixed_precision_of(config.settings.precision, config.method)
    with started_trackers(tracking, config.to_dict(), reporter) as trackers:
        accelerator = make_accelerator(mixed)
        accelerator.trackers = [*trackers.started]
        metrics = _run(
            config, splits, folder, reporter, accelerator, features, states, resume, before, halt
        )
        accelerator.free_memory()  # of the trained model: the proof loads its base once more
        if accelerator.is_main_process:
            prove_saved(folder / "adapter")
            write_json_atomically(folder / METRICS_FILE, metrics)
            trackers.conclude(metrics)
        accelerator.wait_for_everyone()
    # The other processes of a run know neither its costs nor its proof.
    return RunResult(folder, finished_metrics(folder) or metrics)


def with_new_head(config: RunConfig) -> RunConfig:
    """Return a run that costs as much to train, and whose head no text has to be read for."""
    kind = "mean" if config.head.head == "auto" else config.head.head
    return replace(config, head=HeadConfig(kind, head_dropout=config.head.head_dropout))


def _run(
    config: RunConfig,
    splits: Splits,
    folder: Path,
    reporter: Reporter,
    accelerator: Accelerator,
    features: FrozenFeatures,
    states: StateStores | None,
    resume: bool,
    before: dict[str, Any] | None,
    halt: Halt | None,
) -> dict[str, Any]:
    """Do what ``execute`` says; return the content of ``metrics.json``."""
    run = prepare(config, splits, features, reporter)
    run.classifier.model.to(accelerator.device)
    if before is None:
        before, _ = judge_parts(
            "before training", judged_parts(config, run), config, run, splits, reporter
        )
    seconds = adapt_run(config, run, reporter)
    checkpoint = latest_checkpoint(folder / "checkpoints") if resume else None
    decided = checkpoint.state["course"]["precision"] if checkpoint else None
    foretold = expected_memory(run.classifier, config, run.examples["train"].rows, decided)
    if states is not None:  # what earlier runs left is none of this one's
        foretold["process_before"] -= states.bytes_held(in_memory=True)
    course, peak = _train(config, run, folder, reporter, accelerator, checkpoint, states, halt)
    course.seconds += seconds
    metrics = write_results(
        config, run, splits, folder, reporter, accelerator,
        before=before, course=course, peak=peak,
    )  # fmt: skip
    return {**metrics, "expected_memory": foretold}


def adapt_run(config: RunConfig, run: Prepared, reporter: Reporter) -> float:
    """Adapt a run's model; return the seconds that looking at texts took for it."""
    began = time.perf_counter()
    statistics = look_at_texts(
        run.classifier, run.examples["train"], config.method, config.settings, reporter,
        rounding=run.rounding,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    adapt(
        run.classifier.model,
        config.method,
        seed=config.settings.seed,
        head=run.classifier.head_parameters,
        # A run of its own has no use for the values that a replacement trains away from.
        keep_base=isinstance(config.method, LayerMethod),
        statistics=statistics,
    )
    run.rounding.clear()
    if config.method.added_tokens:
        # What was seen of the base's first tokens does not hold behind virtual ones.
        run.classifier.packs = run.classifier.reads = None
    return seconds


def _train(
    config: RunConfig,
    run: Prepared,
    folder: Path,
    reporter: Reporter,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None,
    states: StateStores | None,
    halt: Halt | None,
) -> tuple[Course, PeakMemory]:
    with measured_memory() as peak:
        loop = TrainingLoop(
            run.classifier,
            run.examples["train"],
            run.examples.get("validation"),
            config.decided_settings(new_head=run.classifier.new_head),
            learning_rate=config.learning_rate,
            folder=folder / "checkpoints",
            reporter=reporter,
            accelerator=accelerator,
            states=states,
            halt=halt,
        )
        course = loop.run(checkpoint)
    return course, peak.without(loop.constant.others_bytes)
