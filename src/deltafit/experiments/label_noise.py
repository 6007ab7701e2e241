"""Rows whose label is likely wrong, by confident learning with a cheap classifier.

Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", 2021,
section 3.1: a row of class i is suspicious if a classifier that never saw it is at least as sure of
another class j as it is, on average, of the rows that are labelled j. Here it has to be surer of j
than of i, too.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline

from deltafit.data import LabelledTexts, stratified_sample
from deltafit.experiments.findings import Case, Check, Finding, counted, listed, quoted, rows_of

_FOLDS = 3
_MOST_ROWS = 5000  # so that it takes seconds
_SERIOUS = 0.01  # share of the rows

FloatArray = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Suspicion:
    """Rows that are labelled as one class and look like another.

    Attributes:
        rows: indices of the rows, the most suspicious first.
        guesses: the class that each looks like.
        looked_at: how many rows were looked at.
        agreement: share of them whose label the classifier gives too.
    """

    rows: tuple[int, ...]
    guesses: tuple[int, ...]
    looked_at: int
    agreement: float


def label_noise(case: Case) -> Iterator[Finding]:
    """Training rows that a cheap classifier is sure are of another class."""
    train = case.splits.train
    found = suspicious_rows(train)
    if found is None or not found.rows:
        return
    sample = "" if found.looked_at == len(train) else f", a sample of {len(train):,},"
    yield Finding(
        "warning" if len(found.rows) >= _SERIOUS * found.looked_at else "note",
        "label noise",
        f"{counted(len(found.rows), 'label')} ({len(found.rows) / found.looked_at:.1%}) of "
        f"{found.looked_at:,} training rows{sample} may be wrong: TF-IDF with logistic regression, "
        f"fitted to other rows, is sure of another class. It agrees with {found.agreement:.1%} of "
        "all labels; the lower that is, the more of these are merely hard.",
        f"Read, and correct where they are wrong, {rows_of(train, found.rows)} (the most "
        "suspicious first)",
        listed(
            [
                f"{quoted(train, row)}; it looks like {train.label_names[guess]!r}"
                for row, guess in zip(found.rows, found.guesses, strict=True)
            ]
        ),
    )


def suspicious_rows(part: LabelledTexts) -> Suspicion | None:
    """Return the suspicious rows of a part, or of a stratified sample of it.

    Classes of fewer rows than there are folds are left out.

    Returns:
        None where there are not two classes to tell apart, or no words to tell them by.
    """
    most = max(_MOST_ROWS, len(set(part.labels)))
    sample = stratified_sample(part.labels, most, seed=0)
    counts = Counter(part.labels[row] for row in sample)
    rows = [row for row in sample if counts[part.labels[row]] >= _FOLDS]
    if len({part.labels[row] for row in rows}) < 2:
        return None
    classes, labels = np.unique([part.labels[row] for row in rows], return_inverse=True)
    try:
        shares = _shares([part.texts[row] for row in rows], labels)
    except ValueError:  # no text of a fold has a word
        return None
    order, guesses = confident_disagreement(shares, labels)
    return Suspicion(
        rows=tuple(rows[index] for index in order),
        guesses=tuple(int(classes[guess]) for guess in guesses),
        looked_at=len(rows),
        agreement=float((shares.argmax(1) == labels).mean()),
    )


def confident_disagreement(shares: FloatArray, labels: Labels) -> tuple[list[int], list[int]]:
    """Return the suspicious rows, the most suspicious first, and the class each looks like.

    Args:
        shares: probabilities of the classes by a classifier that did not see the row,
            ``[n, classes]``; every class has a row.
        labels: class indices, ``[n]``.
    """
    n, classes = shares.shape
    # How sure it is of a class where that is the label: the bar for calling others so.
    bars = np.array([shares[labels == label, label].mean() for label in range(classes)])
    sure = np.where(shares >= bars, shares, -1.0)
    guesses = sure.argmax(1)
    own = shares[np.arange(n), labels]
    margins = sure[np.arange(n), guesses] - own  # below zero where it is sure of no class
    found = np.flatnonzero((guesses != labels) & (margins > 0))
    order = found[np.argsort(-margins[found], kind="stable")]
    return [int(row) for row in order], [int(guess) for guess in guesses[order]]


def _shares(texts: Sequence[str], labels: Labels) -> FloatArray:
    """Return the probabilities of the classes, ``[n, classes]``, each row's without its fold."""
    shares = np.zeros((len(texts), int(labels.max()) + 1))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for kept, left_out in folds.split(labels, labels):
            model = make_pipeline(
                TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=50)
            )
            model.fit([texts[row] for row in kept], labels[kept])
            shares[left_out] = model.predict_proba([texts[row] for row in left_out])
    return shares


LENGTHY_CHECKS: tuple[Check, ...] = (label_noise,)
"""Checks that take longer than a run should wait for."""
