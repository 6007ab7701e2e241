"""What ``ranks`` measures: rows of ranks, parts and matrices, compared on the same test rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from deltafit.experiments.statistics import (
    PairedComparison,
    holm,
    paired_comparison,
    with_p_value,
)
from deltafit.experiments.tables import Outcome, outcome_of
from deltafit.experiments.together import Together
from deltafit.tasks.metrics import classification_metrics

Standing = Literal["best"] | Outcome
PartKind = Literal["block", "matrix type", "matrix"]


@dataclass(frozen=True)
class Measured:
    """How well a variant of an adapter does, beside the whole adapter on the same rows.

    Attributes:
        correct: which rows it gets right, ``[rows]``.
        accuracy: their share.
        interval: its Wilson 95 % interval, ``[low, high]``.
        macro_f1: mean F1 over the classes.
        changed: predictions that are others than the whole adapter's.
        against_whole: its accuracy minus the whole adapter's.
    """

    correct: np.ndarray = field(repr=False)
    accuracy: float
    interval: list[float]
    macro_f1: float
    changed: int
    against_whole: PairedComparison


def measured(
    logits: np.ndarray, whole: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> Measured:
    """Return the figures of a variant.

    Args:
        logits: the variant's, ``[rows, labels]``.
        whole: the whole adapter's, ``[rows, labels]``.
        labels: true class indices, ``[rows]``.
        label_names: the class names.

    Raises:
        DeltafitError: a logit is not finite.
    """
    figures = classification_metrics(labels, logits, label_names)
    predicted, expected = logits.argmax(1), whole.argmax(1)
    correct = predicted == labels
    return Measured(
        correct,
        figures["accuracy"],
        figures["accuracy_interval"],
        figures["macro_f1"],
        int((predicted != expected).sum()),
        paired_comparison(correct, expected == labels),
    )


@dataclass(frozen=True)
class RankRow:
    """An adapter cut to a rank.

    Attributes:
        rank: of every matrix whose own is not smaller; 0 is the base with the trained head.
        parameters: values that are stored, the head's included.
        stored_bytes: of those values; a file adds its header.
        energy_kept: share of ‖ΔW‖², all matrices together, 0 to 1.
        measured: how well it does.
        against_best: its accuracy minus that of the best rank; None for that one.
        p_value: for "it is as good as the best", corrected for all pairs of ranks, since the best
            was chosen by these rows (`Together`); None for the best.
        standing: "best"; "within noise" where the interval of ``against_best`` includes 0; "worse"
            where ``p_value`` is below 0.05; "undecided" between the two.
    """

    rank: int
    parameters: int
    stored_bytes: int
    energy_kept: float
    measured: Measured
    against_best: PairedComparison | None = None
    p_value: float | None = None
    standing: Standing = "best"


@dataclass(frozen=True)
class PartRow:
    """The ΔW of some matrices, left out and alone.

    Attributes:
        kind: what the part is.
        name: a block's index, or the name of a matrix, within its block or in full.
        title: what a person calls it.
        modules: whose ΔW it is.
        energy: share of ‖ΔW‖² of all matrices, 0 to 1.
        without: the adapter without it.
        alone: the adapter with nothing else; the head stays.
        p_value: of ``without.against_whole``, corrected for all parts.
        standing: of the adapter without it against the whole, as of a ``RankRow``, or "better".
    """

    kind: PartKind
    name: str
    title: str
    modules: tuple[str, ...]
    energy: float
    without: Measured
    alone: Measured
    p_value: float = 1.0
    standing: Standing = "within noise"


@dataclass(frozen=True)
class Dispensable:
    """Parts of one kind that can be left out together within noise, as far as was measured.

    Attributes:
        parts: those that matter least; at least one and not all.
        without: the adapter without them.
    """

    parts: tuple[PartRow, ...]
    without: Measured


@dataclass(frozen=True)
class MatrixRow:
    """How far one matrix moved, and in how many directions.

    Attributes:
        name: the module.
        title: what a person calls it.
        shape: of its weight's view, ``[outputs, inputs]``.
        rank: of its ΔW, as stored.
        effective_rank: over how many directions ΔW is spread; see ``MatrixChange``.
        delta_norm: Frobenius norm of ΔW.
        share: of it in the norm of W.
        energy: share of ‖ΔW‖² of all matrices, 0 to 1.
    """

    name: str
    title: str
    shape: tuple[int, ...]
    rank: int
    effective_rank: float | None
    delta_norm: float
    share: float
    energy: float


def standing(comparison: PairedComparison, p_value: float) -> Outcome:
    """Return what may be said of a difference, given its p-value corrected for its family."""
    return outcome_of(vars(with_p_value(comparison, p_value)))


def compared_ranks(rows: Sequence[RankRow]) -> list[RankRow]:
    """Return the rows compared with the best of them: the most accurate, the largest of those."""
    best = max(rows, key=lambda row: (row.measured.accuracy, row.rank))
    others = [row for row in rows if row is not best]
    found = [paired_comparison(row.measured.correct, best.measured.correct) for row in others]
    together = Together([row.measured.correct[None] for row in [best, *others]])
    corrected = [together.compare(index, 0).adjusted_p_value for index in range(1, len(others) + 1)]
    judged = [
        replace(row, against_best=one, p_value=p_value, standing=standing(one, p_value))
        for row, one, p_value in zip(others, found, corrected, strict=True)
    ]
    return sorted([best, *judged], key=lambda row: row.rank)


def compared_parts(rows: Sequence[PartRow]) -> list[PartRow]:
    """Return the parts with their standing, kind by kind, what matters most of each kind first."""
    corrected = holm([row.without.against_whole.p_value for row in rows])
    judged = [
        replace(row, p_value=p_value, standing=standing(row.without.against_whole, p_value))
        for row, p_value in zip(rows, corrected, strict=True)
    ]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    return sorted(judged, key=lambda row: (kinds.index(row.kind), _harm(row)))


def _harm(row: PartRow) -> tuple[float, int, float]:
    """Return what puts the part first that the adapter can least do without."""
    without = row.without
    return (without.against_whole.difference, -without.changed, -row.energy)


def best_rank(rows: Sequence[RankRow]) -> RankRow:
    """Return the row that the others were compared with."""
    return next(row for row in rows if row.standing == "best")


def smallest_rank(rows: Sequence[RankRow]) -> RankRow:
    """Return the row of the smallest rank that is the best or within noise of it."""
    tied = [row for row in rows if row.standing in ("best", "within noise")]
    return min(tied, key=lambda row: row.rank)
