"""What a run leaves in its folder: figures, predictions, costs and the adapter."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from deltafit.data import Splits
from deltafit.methods import DeltaMethod, LayerMethod, Norms
from deltafit.prediction.folder import save_classifier, versions
from deltafit.tasks.inference import encoder_of
from deltafit.training.config import RunConfig
from deltafit.training.costs import costs_of, environment_of
from deltafit.training.course import Course
from deltafit.training.identity import run_hash
from deltafit.training.judging import judge, write_predictions
from deltafit.training.memory import PeakMemory
from deltafit.training.preparation import Prepared
from deltafit.training.progress import Counted, Reporter
from deltafit.training.validation import COLLAPSED, collapsed

PREDICTIONS_FILE = "predictions.safetensors"


def judge_parts(
    what: str,
    names: Sequence[str],
    config: RunConfig,
    run: Prepared,
    splits: Splits,
    reporter: Reporter,
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Return metrics and logits of parts by name, telling how many rows are done.

    Args:
        what: the evaluation's name, such as "after training".
        names: of the parts.
        config: the run.
        run: its model as it stands now, and its rows.
        splits: the texts.
        reporter: told how it goes.
    """
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


def judged_parts(config: RunConfig, run: Prepared) -> list[str]:
    """Return the parts that a run is judged on: the training rows, which are many, if asked for."""
    return [name for name in run.examples if name != "train" or config.settings.judge_training]


def write_results(
    config: RunConfig,
    run: Prepared,
    splits: Splits,
    folder: Path,
    reporter: Reporter,
    accelerator: Accelerator,
    *,
    before: dict[str, Any],
    course: Course,
    peak: PeakMemory,
    joined: int = 1,
) -> dict[str, Any]:
    """Judge a trained run and save its adapter and predictions; return what its metrics say.

    Args:
        config: the run.
        run: its classifier trained, its adapter active.
        splits: the texts.
        folder: the run's.
        reporter: told how it goes.
        accelerator: the main process writes.
        before: metrics of the untouched model.
        course: of the training.
        peak: of the training.
        joined: how many runs were trained together.
    """
    judged = judged_parts(config, run) or ["train"]
    after, logits = judge_parts("after training", judged, config, run, splits, reporter)
    judged_on = next((name for name in ("test", "validation") if name in after), None)
    processes = accelerator.num_processes
    identity = run_hash(config, splits, _found(run, course, joined=joined, processes=processes))
    head_rate = config.decided_settings(new_head=run.classifier.new_head).head_learning_rate
    metrics = {
        "run_hash": identity,
        "judged_on": judged_on,
        "head": run.classifier.head.kind,
        "head_learning_rate": head_rate,
        "before": before,
        "after": after,
        "history": course.history,
        "best_step": course.best_step,
        "packed": course.packed,
        "first_tokens": course.first_tokens,
        "states_kept": course.kept,
        "precision": course.precision,
        "attention_precision": course.attention_precision,
        "truncated": run.truncated,
        "notes": [*course.notes, *_notes(config, run, judged_on or "train", logits)],
        "versions": versions(),
        "environment": environment_of(accelerator),
    }
    if accelerator.is_main_process:
        _save(config, run, splits, folder, identity, after)
        metrics["costs"] = costs_of(run.classifier, course, peak, folder / "adapter")
        write_predictions(folder / PREDICTIONS_FILE, splits, logits)
    return metrics


def _found(run: Prepared, course: Course, *, joined: int, processes: int) -> dict[str, Any]:
    """Return what decides a run and shows in the base, in its tokens and on the machine alone."""
    tokens = hashlib.sha256()
    for part in run.examples.values():
        for row in part.rows:
            tokens.update(np.array([len(row), *row], dtype=np.int64).tobytes())
    own = ("_name_or_path", "transformers_version")  # no part of what is computed
    config: Any = encoder_of(run.classifier.model).config
    return {
        "base": run.base_fingerprint,
        "architecture": {k: v for k, v in config.to_dict().items() if k not in own},
        "tokens": tokens.hexdigest(),
        "precision": course.precision,
        "attention_precision": course.attention_precision,
        "packed": course.packed,
        "first_tokens": course.first_tokens,
        # Which elements dropout drops.
        "joined": joined,
        "processes": processes,
    }


def _notes(
    config: RunConfig, run: Prepared, part: str, logits: dict[str, np.ndarray]
) -> Iterator[str]:
    """Yield what a person should know of a trained classifier that its figures do not say."""
    if collapsed(logits[part], run.examples[part].labels):
        yield f"The trained model has collapsed: {COLLAPSED}"
    for_peft = isinstance(config.method, LayerMethod | Norms)
    if for_peft and run.classifier.head.kind != "architecture":
        note = (
            f"The head ({run.classifier.head.kind} pooling) is deltafit's own, so PEFT does not "
            "load this adapter."
        )
        if isinstance(config.method, DeltaMethod):
            note += " `deltafit merge` writes a plain encoder, and the head beside it."
        yield note


def _save(
    config: RunConfig,
    run: Prepared,
    splits: Splits,
    folder: Path,
    identity: str,
    after: dict[str, Any],
) -> None:
    short = ("accuracy", "accuracy_interval", "macro_f1", "log_loss", "count")
    save_classifier(
        run.classifier,
        folder / "adapter",
        base_fingerprint=run.base_fingerprint,
        max_length=run.max_length,
        facts={
            "run_hash": identity,
            "method": config.method.to_dict(),
            "metrics": {
                name: {key: figures[key] for key in short if key in figures}
                for name, figures in after.items()
            },
            "data": {"source": splits.train.source, "sha256": splits.train.content_hash()},
        },
    )
