"""The cheap baselines that every adapter must beat: the majority class and TF-IDF with an SVM.

The third, logistic regression on frozen features, is `deltafit.tasks.probe.logistic_probe`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from deltafit.data import Splits
from deltafit.errors import DeltafitError
from deltafit.tasks.probe import Probe, logistic_probe
from deltafit.training.features import FrozenFeatures
from deltafit.training.progress import Reporter

__all__ = [
    "BaselineResult",
    "Probe",
    "Scored",
    "logistic_probe",
    "majority_baseline",
    "score_baselines",
    "tfidf_svm",
]

FloatArray = NDArray[np.float64]
_SEEDS = 2**32  # that numpy's older generator, which scikit-learn uses, can tell apart


@dataclass(frozen=True, eq=False)
class BaselineResult:
    """What a baseline says about the test rows.

    Attributes:
        scores: ``[n, classes]``; the largest of a row is the prediction. Margins, not
            log-probabilities: log loss and calibration error of them mean nothing.
        seconds: wall time for fitting and scoring together.
    """

    scores: FloatArray
    seconds: float


def majority_baseline(train_labels: Sequence[int], count: int, num_classes: int) -> FloatArray:
    """Return logits ``[count, num_classes]`` that know only how common each class is.

    They are the log shares of the classes in training, one row added to each class so that a
    class without rows stays possible (Laplace): the prediction is the commonest class, and its
    log loss is what knowing nothing of the text costs.
    """
    counts = np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=num_classes)
    log_shares = np.log((counts + 1) / (counts.sum() + num_classes))
    return np.tile(log_shares, (count, 1))


def tfidf_svm(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    test_texts: Sequence[str],
    *,
    num_classes: int,
    seed: int,
) -> BaselineResult:
    """Fit a linear support vector machine on TF-IDF of single words and pairs, and score the test.

    scikit-learn's defaults but for the word pairs and ``sublinear_tf`` (1 + log of a count): the
    plain recipe that needs no tuning.

    Args:
        train_texts: ``n`` texts.
        train_labels: their class indices, ``[n]``.
        test_texts: texts to score.
        num_classes: columns of the scores; a class without training rows is never predicted.
        seed: of the solver, which visits the rows in random order; any whole number.

    Raises:
        DeltafitError: no training text holds a word of two or more letters.
    """
    started = time.perf_counter()
    labels = np.asarray(train_labels, dtype=np.int64)
    present = np.unique(labels)
    if len(present) == 1:  # nothing to separate, and LinearSVC refuses
        scores = majority_baseline(train_labels, len(test_texts), num_classes)
        return BaselineResult(scores, time.perf_counter() - started)

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        train_matrix = vectorizer.fit_transform(train_texts)  # sparse [n, words and pairs]
    except ValueError as error:
        raise DeltafitError(
            "The TF-IDF baseline found no words of two or more letters in the training texts. "
            "Check that the right text column was chosen."
        ) from error
    classifier = LinearSVC(random_state=seed % _SEEDS).fit(train_matrix, labels)
    margins = classifier.decision_function(vectorizer.transform(test_texts))
    scores = _columns_for_all(margins, present, num_classes)
    return BaselineResult(scores, time.perf_counter() - started)


def _columns_for_all(
    margins: FloatArray, present: NDArray[np.integer[Any]], num_classes: int
) -> FloatArray:
    """Spread the margins of the classes ``present`` over all columns, ``[n, num_classes]``."""
    if margins.ndim == 1:  # two classes: scikit-learn gives one margin, positive for the second
        margins = np.stack([-margins, margins], axis=1)
    below_all = margins.min(initial=0.0) - 1.0
    scores = np.full((len(margins), num_classes), below_all)
    scores[:, present] = margins
    return scores


@dataclass(frozen=True, eq=False)
class Scored:
    """What a cheap baseline said of the judged rows.

    Attributes:
        name: of its row.
        result_name: in result files.
        scores: ``[rows, classes]``.
        seconds: for fitting and scoring.
        notes: of its row.
    """

    name: str
    result_name: str
    scores: np.ndarray
    seconds: float
    notes: tuple[str, ...] = ()


def score_baselines(
    splits: Splits, judged: str, features: FrozenFeatures, seed: int, reporter: Reporter
) -> list[Scored]:
    """Return what the cheap baselines say of one part: majority, SVM and probe."""
    train, part = splits.train, splits.parts()[judged]
    names = train.label_names
    reporter.say("cheap baselines: majority class, TF-IDF + linear SVM, frozen features")
    majority = majority_baseline(train.labels, len(part), len(names))
    svm = tfidf_svm(train.texts, train.labels, part.texts, num_classes=len(names), seed=seed)
    pooling = features.best_pooling()
    probe = features.probe(pooling)
    logits = probe.logits(features.features[judged][pooling])
    note = f"{pooling} pooling and C={probe.C:g}, chosen on held-out rows"
    return [
        Scored("majority class", "majority", majority, 0.0),
        Scored("TF-IDF + linear SVM", "tfidf_svm", svm.scores, svm.seconds),
        Scored(
            "frozen features + logistic regression", "frozen_probe", logits, features.seconds,
            (note,),
        ),
    ]  # fmt: skip
