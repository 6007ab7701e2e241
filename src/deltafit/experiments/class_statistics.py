"""F1 by class: where do two methods differ, and which differences are noise?

Rows are drawn again and seeds add their noise as in `deltafit.experiments.together.Together`, and
what is found is corrected for the classes that were looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from deltafit.experiments.answers import IntArray
from deltafit.experiments.resampling import (
    FloatArray,
    SeedNoise,
    degrees_of_freedom,
    interval_of_share,
)
from deltafit.experiments.statistics import PairedComparison
from deltafit.experiments.together import PSEUDO_ROWS, Known, compared_together

F1_RESAMPLES = 4_000
RARE = 0.5  # of the training rows that a class would have if all had as many


@dataclass(frozen=True)
class ClassDifference:
    """A class's F1 under a method and under the reference.

    Attributes:
        name: of the class.
        support: judged rows of it.
        train_count: training rows of it.
        rare: whether that is under half of a class's even share.
        f1: the method's, the mean over its seeds.
        reference_f1: the reference's.
        comparison: of the two, corrected for the number of classes.
    """

    name: str
    support: int
    train_count: int
    rare: bool
    f1: float
    reference_f1: float
    comparison: PairedComparison


@dataclass(frozen=True)
class ClassDifferences:
    """How a method stands to the reference in F1.

    Attributes:
        classes: those among the judged rows, in their order.
        rare: the mean F1 over rare ones, the method's minus the reference's; None where there are
            none, or no others.
        others: over the others. The two are corrected for each other.
    """

    classes: tuple[ClassDifference, ...]
    rare: PairedComparison | None
    others: PairedComparison | None


def class_f1(labels: IntArray, predicted: IntArray, classes: int) -> FloatArray:
    """Return F1 by seed and class, ``[seeds, classes]``; 0 where a class is neither met nor said.

    Args:
        labels: true class indices, ``[n]``.
        predicted: ``[seeds, n]``.
        classes: how many there are.
    """
    weights = np.ones((1, len(labels)))
    f1, _ = _weighted_f1(weights, labels, predicted, classes)
    result: FloatArray = f1[0]
    return result


def macro_f1_interval(labels: IntArray, predicted: IntArray, classes: int) -> list[float] | None:
    """Return the 95 % interval ``[low, high]`` of macro-F1, the mean over seeds.

    The middle of a bootstrap of rows, with the noise of seeds where there are several. None where
    every row is right with every seed: rows drawn again from such would show certainty.

    Args:
        labels: true class indices, ``[n]``.
        predicted: ``[seeds, n]``.
        classes: how many there are.
    """
    if (predicted == labels).all():
        return None
    generator = np.random.default_rng(0)
    drawn = [
        (f1.sum(axis=2) / np.maximum(occurs.sum(axis=2), 1)).mean(axis=1)
        for f1, occurs in _resampled_f1(labels, predicted, classes, generator)
    ]
    f1, occurs = _weighted_f1(np.ones((1, len(labels))), labels, predicted, classes)
    noise = SeedNoise.of(f1[0].sum(axis=1) / occurs[0].sum(axis=1))
    means = np.concatenate(drawn) + noise.drawn(F1_RESAMPLES, generator)
    return interval_of_share(means.mean(), means.var(), noise)


def class_differences(
    labels: IntArray,
    label_names: Sequence[str],
    train_counts: Sequence[int],
    predicted: IntArray,
    reference: IntArray,
) -> ClassDifferences:
    """Compare the F1 of every class that is among the judged rows, and its mean over rare ones.

    Args:
        labels: true class indices, ``[n]``.
        label_names: of the classes.
        train_counts: training rows of each.
        predicted: the method's answers, ``[seeds, n]``.
        reference: the reference's answers, ``[seeds, n]``.
    """
    count, methods = len(label_names), (len(predicted), len(reference))
    support = np.bincount(labels, minlength=count)
    met = [int(index) for index in np.flatnonzero(support)]
    both, generator = np.concatenate([predicted, reference]), np.random.default_rng(0)
    f1 = class_f1(labels, both, count)
    chunks = _resampled_f1(labels, both, count, generator, methods)
    drawn = np.concatenate([_apart(each[:, :, met], methods, axis=1) for each, _ in chunks])

    def compared(weights: FloatArray, rows: FloatArray | None = None) -> list[PairedComparison]:
        by_run = f1[:, met] @ weights
        return _compared_f1(drawn @ weights, by_run, methods, rows)

    rare = np.array(train_counts)[met] < RARE * sum(train_counts) / count
    groups: list[PairedComparison | None] = [None, None]
    if 0 < rare.sum() < len(rare):
        members = np.stack([rare, ~rare], axis=1)
        groups[:] = compared(
            members / members.sum(axis=0), (support[met] @ members).astype(np.float64)
        )
    ours, theirs = (each.mean(axis=0) for each in np.split(f1, [methods[0]]))
    return ClassDifferences(
        tuple(
            ClassDifference(
                name=label_names[i],
                support=int(support[i]),
                train_count=train_counts[i],
                rare=bool(is_rare),
                f1=float(ours[i]),
                reference_f1=float(theirs[i]),
                comparison=comparison,
            )
            for i, is_rare, comparison in zip(met, rare, compared(np.eye(len(met))), strict=True)
        ),
        *groups,
    )


def _apart(f1: FloatArray, methods: tuple[int, int], axis: int) -> FloatArray:
    """Return the mean over the runs of one method minus that over the other's."""
    ours, theirs = np.split(f1, [methods[0]], axis=axis)
    difference: FloatArray = ours.mean(axis=axis) - theirs.mean(axis=axis)
    return difference


def _compared_f1(
    drawn: FloatArray,
    by_run: FloatArray,
    methods: tuple[int, int],
    rows: FloatArray | None,
) -> list[PairedComparison]:
    """Compare figures of two methods together.

    Args:
        drawn: their differences, of rows drawn again, ``[draws, figures]``.
        by_run: the figures of each run, ``[runs, figures]``.
        methods: how many of the runs are of each method.
        rows: that each figure is of, where it is one of many classes. Two more of each class would
            add up, and pull it towards 0 farther than its noise reaches: it gets two in all.
    """
    generator = np.random.default_rng(1)
    noises = [SeedNoise.of(each) for each in np.split(by_run, [methods[0]])]
    drawn = drawn + sum(noise.drawn(len(drawn), generator) for noise in noises)
    variance = np.maximum(drawn.var(axis=0), np.finfo(np.float64).tiny)
    differences = _apart(by_run, methods, axis=0)
    centre = drawn.mean(axis=0) if rows is None else differences * rows / (rows + PSEUDO_ROWS)
    known = Known(centre, variance**0.5, degrees_of_freedom(variance, noises))
    return compared_together(differences, drawn, known, known)


def _resampled_f1(
    labels: IntArray,
    predicted: IntArray,
    classes: int,
    generator: np.random.Generator,
    methods: Sequence[int] = (),
) -> Iterator[tuple[FloatArray, NDArray[np.bool_]]]:
    """Draw rows with replacement; give F1 and which classes occur, ``[draws, runs, classes]``.

    Args:
        labels: true class indices, ``[n]``.
        predicted: ``[runs, n]``.
        classes: how many there are.
        generator: of the draws.
        methods: how many of the runs, in their order, are of each method. If given, every class
            gets two more rows, as in `Together`: of few rows a handful is no certainty.
    """
    # Rows on which all runs say the same of the same class are interchangeable.
    pseudo_rows = PSEUDO_ROWS if methods else 0
    patterns, counts = np.unique(np.vstack([labels, predicted]), axis=1, return_counts=True)
    for start in range(0, F1_RESAMPLES, 200):  # all at once would take gigabytes of many rows
        size = min(200, F1_RESAMPLES - start)
        weights = generator.multinomial(len(labels), counts / len(labels), size=size)
        drawn = weights.astype(np.float64)
        right = generator.normal(
            pseudo_rows / 2, (pseudo_rows / 4) ** 0.5, (size, len(methods) or 1, classes)
        )
        right = np.repeat(right, methods or [1], axis=1)
        yield _weighted_f1(drawn, patterns[0], patterns[1:], classes, pseudo_rows, right)


def _weighted_f1(
    weights: FloatArray,
    labels: IntArray,
    predicted: IntArray,
    classes: int,
    added: int = 0,
    right: FloatArray | float = 0.0,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return F1, ``[draws, runs, classes]``, of rows that count ``weights`` ``[draws, n]`` each.

    Of every class there are ``added`` rows more, ``right`` of them; the others are taken for no
    class.
    """
    truth = _one_hot(labels, classes)
    met = (truth.T @ weights.T).T
    hits, both = [], []
    for answers in predicted:
        said = _one_hot(answers, classes)
        hits.append((truth.multiply(said).tocsr().T @ weights.T).T)
        both.append(met + (said.T @ weights.T).T)  # [draws, classes]
    every = np.stack(both, axis=1) + added + right
    f1 = 2 * (np.stack(hits, axis=1) + right) / np.maximum(every, 1e-9)
    return np.clip(f1, 0.0, 1.0), every > 0  # what is added is normal, and has no bounds


def _one_hot(indices: IntArray, classes: int) -> csr_matrix:
    rows = np.arange(len(indices))
    return csr_matrix((np.ones(len(indices)), (rows, indices)), (len(indices), classes))
