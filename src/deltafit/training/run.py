"""One run from its configuration to metrics, costs and an adapter on disk."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from deltafit.adapters import adapt
from deltafit.data import Splits
from deltafit.files import write_json_atomically
from deltafit.methods import DeltaMethod
from deltafit.prediction.fingerprint import fingerprint
from deltafit.prediction.folder import prove_saved, save_classifier, versions
from deltafit.tasks.classification import Classifier, HeadKind, HeadSettings, load_classifier
from deltafit.tasks.inference import tokenise_for
from deltafit.tasks.positions import usable_length
from deltafit.training.accelerator import mixed_precision_of, started_accelerator
from deltafit.training.checkpoints import Checkpoint, latest_checkpoint
from deltafit.training.config import RunConfig
from deltafit.training.costs import costs_of, environment_of, expected_memory
from deltafit.training.course import Course, Examples
from deltafit.training.features import FrozenFeatures
from deltafit.training.folders import METRICS_FILE, finished_metrics
from deltafit.training.judging import judge, write_predictions
from deltafit.training.loop import TrainingLoop
from deltafit.training.memory import PeakMemory, measured_memory
from deltafit.training.progress import Counted, Reporter
from deltafit.training.validation import COLLAPSED, collapsed

PREDICTIONS_FILE = "predictions.safetensors"


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


@dataclass
class _Prepared:
    """A run with everything loaded and nothing trained."""

    classifier: Classifier
    examples: dict[str, Examples]
    truncated: dict[str, int]
    max_length: int
    base_fingerprint: dict[str, Any]


def execute(
    config: RunConfig,
    splits: Splits,
    folder: Path,
    *,
    reporter: Reporter,
    resume: bool = False,
    trackers: tuple[str, ...] = (),
    features: FrozenFeatures | None = None,
    before: dict[str, Any] | None = None,
) -> RunResult:
    """Train, evaluate and save one run.

    Args:
        config: what to run.
        splits: the texts that ``config.data`` describes.
        folder: the run's folder; ``run.json`` stands there already.
        reporter: told how the work goes.
        resume: go on from the newest checkpoint.
        trackers: names that Accelerate knows, such as ``tensorboard`` or ``wandb``.
        features: frozen features of the same splits, if some are there already.
        before: the untouched model's metrics, if a run with the same seed and head has them.

    Raises:
        DeltafitError: the input cannot be used, training failed, or the saved adapter does not
            come back as it was trained; nothing half-made is left beside the checkpoints.
        Interrupted: the person asked to stop; the run can be resumed.
    """
    # A run that has finished lives on in reference cycles, and would count as memory of this one.
    gc.collect()
    features = features or FrozenFeatures(
        config.model, splits, config.settings.max_length, reporter
    )
    mixed = mixed_precision_of(config.settings.precision, config.method)
    with started_accelerator(mixed, folder, trackers, config.to_dict()) as accelerator:
        metrics = _run(config, splits, folder, reporter, accelerator, features, resume, before)
        accelerator.free_memory()  # of the trained model: the proof loads its base once more
        if accelerator.is_main_process:
            prove_saved(folder / "adapter")
            write_json_atomically(folder / METRICS_FILE, metrics)
        accelerator.wait_for_everyone()
    # The other processes of a run know neither its costs nor its proof.
    return RunResult(folder, finished_metrics(folder) or metrics)


def _run(
    config: RunConfig,
    splits: Splits,
    folder: Path,
    reporter: Reporter,
    accelerator: Accelerator,
    features: FrozenFeatures,
    resume: bool,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """Do what ``execute`` says; return the content of ``metrics.json``."""
    run = _prepare(config, splits, features, reporter)
    run.classifier.model.to(accelerator.device)
    held_out = [name for name in run.examples if name != "train"]
    if before is None:
        before, _ = _judge("before training", held_out, config, run, splits, reporter)
    _adapt(config, run)
    checkpoint = latest_checkpoint(folder / "checkpoints") if resume else None
    decided = checkpoint.state["course"]["precision"] if checkpoint else None
    foretold = expected_memory(run.classifier, config, run.examples["train"].rows, decided)
    course, peak = _train(config, run, folder, reporter, accelerator, checkpoint)
    # The training rows are many, and say little: they are judged where there are no others.
    judged = held_out or ["train"]
    after, logits = _judge("after training", judged, config, run, splits, reporter)
    judged_on = next((name for name in ("test", "validation") if name in after), None)
    metrics = {
        "judged_on": judged_on,
        "head": run.classifier.head.kind,
        "before": before,
        "after": after,
        "history": course.history,
        "best_step": course.best_step,
        "packed": course.packed,
        "precision": course.precision,
        "truncated": run.truncated,
        "notes": [*course.notes, *_notes(config, run, judged_on or "train", logits)],
        "expected_memory": foretold,
        "versions": versions(),
        "environment": environment_of(accelerator),
    }
    if accelerator.is_main_process:
        _save(config, run, splits, folder, after)
        metrics["costs"] = costs_of(run.classifier, course, peak, folder / "adapter")
        write_predictions(folder / PREDICTIONS_FILE, splits, logits)
    return metrics


def _prepare(
    config: RunConfig, splits: Splits, features: FrozenFeatures, reporter: Reporter
) -> _Prepared:
    kind: HeadKind = features.best_pooling() if config.head.head == "auto" else config.head.head
    classifier = load_classifier(
        features.source,
        splits.train.label_names,
        HeadSettings(kind, config.head.head_dropout),
        seed=config.settings.seed,
    )
    if config.head.head_start == "probe":
        assert kind != "architecture"
        probe = features.probe(kind)
        head = classifier.model.get_submodule("classifier")
        state = {"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)}
        head.load_state_dict(state)
    wanted = config.settings.max_length
    length = usable_length(classifier, wanted)
    if length < wanted:
        reporter.say(
            f"{config.model} takes texts of at most {length} tokens; the maximum length of "
            f"{wanted} is lowered to that."
        )
    examples, truncated = {}, {}
    for name, part in splits.parts().items():
        tokens = tokenise_for(classifier, part.texts, length, part.place)
        examples[name] = Examples(tokens.input_ids, part.labels)
        truncated[name] = tokens.truncated
    cut, total = sum(truncated.values()), sum(map(len, examples.values()))
    if cut:
        reporter.say(f"{cut / total:.1%} of texts ({cut}) were cut to {length} tokens.")
    return _Prepared(
        classifier,
        examples,
        truncated,
        length,
        fingerprint(classifier.model, classifier.head_parameters),
    )


def _adapt(config: RunConfig, run: _Prepared) -> None:
    adapt(
        run.classifier.model,
        config.method,
        seed=config.settings.seed,
        head=run.classifier.head_parameters,
        # A run of its own has no use for the values that a replacement trains away from.
        keep_base=isinstance(config.method, DeltaMethod),
    )


def _train(
    config: RunConfig,
    run: _Prepared,
    folder: Path,
    reporter: Reporter,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None,
) -> tuple[Course, PeakMemory]:
    with measured_memory() as peak:
        course = TrainingLoop(
            run.classifier,
            run.examples["train"],
            run.examples.get("validation"),
            config.settings,
            learning_rate=config.learning_rate,
            folder=folder / "checkpoints",
            reporter=reporter,
            accelerator=accelerator,
        ).run(checkpoint)
    return course, peak


def _judge(
    what: str,
    names: Sequence[str],
    config: RunConfig,
    run: _Prepared,
    splits: Splits,
    reporter: Reporter,
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Return metrics and logits of parts by name, telling how many rows are done."""
    total = sum(len(run.examples[name]) for name in names)
    advance = Counted(reporter, f"evaluation {what}", total)
    metrics, logits = {}, {}
    for name in names:
        metrics[name], logits[name] = judge(
            run.classifier,
            run.examples[name],
            duplicates=splits.duplicates(name),
            progress=advance,
        )
    return metrics, logits


def _notes(
    config: RunConfig, run: _Prepared, part: str, logits: dict[str, np.ndarray]
) -> Iterator[str]:
    """Yield what a person should know of a trained classifier that its figures do not say."""
    if collapsed(logits[part], run.examples[part].labels):
        yield f"The trained model has collapsed: {COLLAPSED}"
    if run.classifier.head.kind != "architecture" and isinstance(config.method, DeltaMethod):
        yield (
            f"The head ({run.classifier.head.kind} pooling) is deltafit's own, so PEFT does not "
            "load this adapter. `deltafit merge` writes a plain encoder, and the head beside it."
        )


def _save(
    config: RunConfig, run: _Prepared, splits: Splits, folder: Path, after: dict[str, Any]
) -> None:
    short = ("accuracy", "accuracy_interval", "macro_f1", "log_loss", "count")
    save_classifier(
        run.classifier,
        folder / "adapter",
        base_fingerprint=run.base_fingerprint,
        max_length=run.max_length,
        facts={
            "method": config.method.to_dict(),
            "metrics": {
                name: {key: figures[key] for key in short if key in figures}
                for name, figures in after.items()
            },
            "data": {"source": splits.train.source, "sha256": splits.train.content_hash()},
        },
    )
