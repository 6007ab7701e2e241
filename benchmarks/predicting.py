"""Prediction: a merged classifier by deltafit, and by transformers' pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import pipeline

import deltafit
from deltafit.data import across_lengths, length_grouped
from deltafit.engine import find_reading
from deltafit.prediction.folder import SavedClassifier, load_saved
from deltafit.tasks.classification import batch_of
from deltafit.tasks.inference import BATCH_TOKENS, InferencePrecision, tokenise_for
from measuring import Stopwatch, in_another_process, memory, record_of
from roofline import DTYPES, forward_seconds, products_of
from works import BF16, PIPELINE, Work


def predict(
    work: Work, side: str, model: str, splits: Any, folder: Path, watch: Stopwatch | None = None
) -> dict[str, Any]:
    """Classify test texts with an adapter of a few steps; return what is kept of it."""
    part = splits.parts()["test"]
    texts = list(part.texts[: work.steps])
    in_another_process(_prepare, model, splits.train.source, work, folder)
    floor = memory()
    measure = _pipeline if side == PIPELINE else _ours
    watch = watch or Stopwatch()
    precision: InferencePrecision = "bf16" if side == BF16 else "float32"
    said, peak, roofline = measure(work, texts, folder, watch, precision)
    right = [part.label_names[y] == one for y, one in zip(part.labels, said, strict=False)]
    return record_of(
        watch.seconds, len(texts), peak, floor, accuracy=float(np.mean(right)), roofline=roofline,
        precision=precision,
    ) | {"held_out": len(texts)}  # fmt: skip


def _prepare(model: str, data: str, work: Work, folder: Path) -> None:
    """Train an adapter for a few steps, and write it merged too."""
    deltafit.train(
        model, deltafit.DataConfig(data, validation="none", limit=200), folder / "run",
        settings=deltafit.TrainingSettings(epochs=1, max_length=work.max_length),
    )  # fmt: skip
    deltafit.merge(folder / "run", folder / "merged")


_Measured = tuple[list[str], int, float | None]  # labels, peak, roofline


def _ours(
    work: Work, texts: list[str], folder: Path, watch: Stopwatch, precision: InferencePrecision
) -> _Measured:
    saved = load_saved(folder / "run")
    list(deltafit.predict(saved, texts[: work.batch_size], precision=precision))
    with watch:
        said = [one.label for one in deltafit.predict(saved, texts, precision=precision)]
    peak = memory()
    return said, peak, _roofline(saved, texts, precision)


def _roofline(saved: SavedClassifier, texts: list[str], precision: InferencePrecision) -> float:
    rows = tokenise_for(saved.classifier, texts, saved.max_length).input_ids
    lengths = [len(row) for row in rows]
    batches = length_grouped(lengths, BATCH_TOKENS)
    classifier = saved.classifier
    batch = batch_of(classifier, across_lengths(rows, 2))
    reads = find_reading(classifier.model, batch, gradients=False)
    return forward_seconds(
        products_of(classifier.model, batch, reads),
        [sum(lengths[i] for i in each) for each in batches], list(map(len, batches)), precision,
    )  # fmt: skip


def _pipeline(
    work: Work, texts: list[str], folder: Path, watch: Stopwatch, precision: InferencePrecision
) -> _Measured:
    classify = pipeline(
        "text-classification", str(folder / "merged"), device="cpu", dtype=DTYPES[precision]
    )
    classify(texts[: work.batch_size], batch_size=work.batch_size)
    with watch:
        said = [answer["label"] for answer in classify(texts, batch_size=work.batch_size)]
    return said, memory(), None
