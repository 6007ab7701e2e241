"""``predict``, ``evaluate``, ``verify``: using a saved classifier."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy.special import softmax

from deltafit.data import load_labelled
from deltafit.errors import DeltafitError, UsageError
from deltafit.prediction.folder import SavedClassifier, load_saved
from deltafit.prediction.merged import compute_logits_merged
from deltafit.tasks.inference import BATCH_TOKENS, InferencePrecision, tokenise_for
from deltafit.tasks.metrics import classification_metrics

# Enough to sort by length within, few enough that memory stays constant for any input.
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Done:
    """How far predicting or evaluating has come.

    Attributes:
        texts: texts that are done.
        total: texts that there are; None where that is not known beforehand.
        truncated: texts that had to be cut, of those read so far.
        max_length: tokens they were cut to.
    """

    texts: int
    total: int | None
    truncated: int
    max_length: int


Progress = Callable[[Done], None]


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text: the likeliest label, and all probabilities."""

    text: str
    label: str
    probability: float
    probabilities: dict[str, float]


def predict(
    folder: str | Path | SavedClassifier,
    texts: Iterable[str],
    *,
    model: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    precision: InferencePrecision = "float32",
    progress: Progress = lambda done: None,
) -> Iterator[Prediction]:
    """Yield a prediction for every text, in order, reading texts as they are needed.

    A loaded classifier that is given serves one thread at a time: while texts run through it, its
    adapter may be merged. Between predictions it is as it was.

    Args:
        folder: a run's folder, its ``adapter`` folder, or one loaded already.
        texts: any number of them; an empty one is an error that gives its number.
        model: where to find the base, if not where it was found when training.
        batch_tokens: the most tokens in one forward pass, padding counted; a longer text has a
            pass of its own.
        precision: float32, or bf16 for mixed precision, which is faster on machines that have it
            and moves probabilities by about a hundredth. The folder is proven in float32.
        progress: called before the first forward pass and after each.

    Raises:
        DeltafitError: the folder cannot be loaded or proven, or a text is empty.
        UsageError: ``batch_tokens`` is not positive, or there is no such precision.
    """
    if precision not in get_args(InferencePrecision):
        raise UsageError(f"The precision must be float32 or bf16; got {precision!r}.")
    saved = folder if isinstance(folder, SavedClassifier) else load_saved(folder, model=model)
    names = saved.classifier.label_names
    count = _Count(progress, None, saved.max_length)
    remaining, first = iter(texts), 1
    while chunk := list(islice(remaining, _TEXTS_AT_ONCE)):
        empty = next((first + i for i, text in enumerate(chunk) if not text.strip()), None)
        if empty is not None:
            raise DeltafitError(f"Text {empty} is empty; remove it or fill it in.")
        tokens = tokenise_for(saved.classifier, chunk, saved.max_length, _numbered(first))
        count.read(tokens.truncated)
        # Between chunks, when the caller has the word, nothing is merged nor otherwise changed.
        logits = compute_logits_merged(
            saved.classifier,
            tokens.input_ids,
            batch_tokens=batch_tokens,
            precision=precision,
            progress=count.done,
        )
        for text, probabilities in zip(chunk, softmax(logits.astype(np.float64), 1), strict=True):
            best = int(probabilities.argmax())
            named = dict(zip(names, probabilities.tolist(), strict=True))
            yield Prediction(text, names[best], float(probabilities[best]), named)
        first += len(chunk)


class _Count:
    """Adds up what is done and tells it."""

    def __init__(self, progress: Progress, total: int | None, max_length: int) -> None:
        self._progress, self._now = progress, Done(0, total, 0, max_length)
        progress(self._now)

    def read(self, truncated: int) -> None:
        """Add texts that were cut."""
        self._now = replace(self._now, truncated=self._now.truncated + truncated)

    def done(self, texts: int) -> None:
        """Add texts that are done."""
        self._now = replace(self._now, texts=self._now.texts + texts)
        self._progress(self._now)


def _numbered(first: int) -> Callable[[int], str]:
    """Return how to name the texts of a stream, of which a chunk begins with text ``first``."""
    return lambda index: f"Text {first + index}"


def evaluate(
    folder: str | Path | SavedClassifier,
    data: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    model: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = lambda done: None,
) -> dict[str, Any]:
    """Measure a saved classifier on labelled texts.

    Args:
        folder: a run's folder, its ``adapter`` folder, or one loaded already.
        data: a file; or a folder or catalogue name, whose test part is taken.
        text_column: the column of texts, where it is not to be found by itself.
        label_column: the same for labels.
        model: where to find the base, if not where it was found when training.
        batch_tokens: see ``predict``.
        progress: called before the first forward pass and after each.

    Returns:
        what ``classification_metrics`` gives; ``source``, the file; ``notes``, on how it was read;
        and ``truncated``, the number of texts that were cut to ``max_length`` tokens.

    Raises:
        DeltafitError: the folder cannot be loaded or proven, or the data cannot be used.
    """
    saved = folder if isinstance(folder, SavedClassifier) else load_saved(folder, model=model)
    names = saved.classifier.label_names
    part = load_labelled(data, names, text_column=text_column, label_column=label_column)
    tokens = tokenise_for(saved.classifier, part.texts, saved.max_length, part.place)
    count = _Count(progress, len(part), saved.max_length)
    count.read(tokens.truncated)
    logits = compute_logits_merged(
        saved.classifier, tokens.input_ids, batch_tokens=batch_tokens, progress=count.done
    )
    metrics = classification_metrics(np.asarray(part.labels), logits, names)
    cut = {"truncated": tokens.truncated, "max_length": saved.max_length}
    return {**metrics, **cut, "source": part.source, "notes": list(part.notes)}


def verify(folder: str | Path, *, model: str | None = None) -> SavedClassifier:
    """Load a saved classifier, which checks its files, its base and its canaries.

    Raises:
        DeltafitError: something has changed since it was saved; the sentence says what.
    """
    return load_saved(folder, model=model)
