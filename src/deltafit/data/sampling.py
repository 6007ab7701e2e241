"""Choosing rows by class: cutting a part off, downsampling to balance, a stratified subsample."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deltafit.errors import DeltafitError, UsageError

_LARGEST_SEED = 2**32 - 1


class Cut(NamedTuple):
    """Row indices, both in their old order, and the classes whose only row had to be kept."""

    kept: list[int]
    cut: list[int]
    single_row_classes: list[int]


def check_seed(seed: int) -> int:
    """Return a seed that every generator here takes, or raise `UsageError`."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise UsageError(f"The seed is {seed}; give a whole number from 0 to {_LARGEST_SEED}.")
    return seed


def stratified_cut(labels: Sequence[int], fraction: float, seed: int, source: str) -> Cut:
    """Cut a fraction of the rows off so that both parts keep the shares of the classes.

    The cut is scikit-learn's ``train_test_split(..., stratify=labels, random_state=seed)`` over
    the classes with two rows or more. A class with a single row stays in the kept part.

    Args:
        labels: the class of every row.
        fraction: the share to cut off, between 0 and 1.
        seed: the same seed cuts the same rows.
        source: the file, for messages.

    Raises:
        DeltafitError: there are too few rows to give every class one row in each part.
    """
    from sklearn.model_selection import train_test_split  # two seconds that few commands need

    counts = Counter(labels)
    single = sorted(label for label, count in counts.items() if count == 1)
    rows = [index for index, label in enumerate(labels) if counts[label] > 1]
    classes = len(counts) - len(single)
    cut_count = math.ceil(fraction * len(rows))
    if classes == 0 or min(cut_count, len(rows) - cut_count) < classes:
        raise DeltafitError(_too_short(source, len(rows), classes, fraction, cut_count))
    kept, cut = train_test_split(
        rows,
        test_size=fraction,
        random_state=check_seed(seed),
        stratify=[labels[index] for index in rows],
    )
    emptied = set(labels) - {labels[index] for index in kept} - set(single)
    if emptied:
        raise DeltafitError(
            f"{source}: cutting off {fraction:.0%} of the rows leaves {len(emptied)} classes "
            "without a training row. Cut a smaller fraction."
        )
    kept += [index for index, label in enumerate(labels) if counts[label] == 1]
    return Cut(sorted(kept), sorted(cut), single)


def _too_short(source: str, rows: int, classes: int, fraction: float, cut_count: int) -> str:
    if classes == 0:
        return (
            f"{source} cannot be cut: every row has a label of its own. Is this the label column? "
            "Name another with label_column (--label-column), or add rows."
        )
    if rows < 2 * classes:
        advice = "Add rows, give the other part as a file, or train on all rows with 'none'"
    else:
        # Rounded inward to whole per cent, and back so that both parts hold every class.
        least = math.ceil(100 * classes / rows) / 100
        enough = least if fraction < 0.5 else max(0.5, 1 - least)
        advice = f"Cut {enough:g} instead, give a file, or train on all rows with 'none'"
    return (
        f"{source} is too short to cut {fraction:.0%} off: {cut_count} of {rows:,} rows would have "
        f"to hold {classes} classes (classes with a single row left out), and so would the rest. "
        f"{advice}."
    )


def balanced_indices(labels: Sequence[int], seed: int) -> list[int]:
    """Return rows such that every class has as many as the smallest, chosen by seed, in order."""
    smallest = min(Counter(labels).values())
    return _choose(labels, dict.fromkeys(labels, smallest), seed)


def stratified_sample(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Return ``count`` rows that keep the shares of the classes, at least one row of each.

    Shares are rounded by largest remainder. All rows are returned where there are no more.

    Raises:
        UsageError: ``count`` is smaller than the number of classes.
    """
    counts = Counter(labels)
    if count < len(counts):
        raise UsageError(
            f"A limit of {count} rows cannot hold all {len(counts)} classes; raise the limit."
        )
    if count >= len(labels):
        return list(range(len(labels)))
    exact = {label: count * counts[label] / len(labels) for label in sorted(counts)}
    quota = {label: max(1, math.floor(share)) for label, share in exact.items()}
    while (missing := count - sum(quota.values())) != 0:
        step = 1 if missing > 0 else -1
        able = [label for label in quota if 1 <= quota[label] + step <= counts[label]]
        # The class furthest from its exact share gives or takes the next row.
        chosen = max(able, key=lambda label: step * (exact[label] - quota[label]))
        quota[chosen] += step
    return _choose(labels, quota, seed)


def _choose(labels: Sequence[int], quota: dict[int, int], seed: int) -> list[int]:
    # RandomState's stream is frozen for good (NEP 19), so a seed means the same rows for ever.
    generator = np.random.RandomState(check_seed(seed))
    codes = np.asarray(labels)
    chosen = [
        generator.permutation(np.flatnonzero(codes == label))[: quota[label]]
        for label in sorted(quota)
    ]
    return sorted(int(index) for rows in chosen for index in rows)
