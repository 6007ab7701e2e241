"""What a report shows of methods beside their rows: what they said, and what they changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deltafit.data import Splits
from deltafit.experiments.answers import Evidence
from deltafit.experiments.rows import Candidate, Failure
from deltafit.prediction.inspecting import changes_of_runs


def evidence_of(
    candidates: Sequence[Candidate | Failure],
    judged: str,
    splits: Splits,
    adapters: Mapping[str, Path],
    runs: Mapping[str, str],
) -> Evidence:
    """Return what a report shows of candidates beside their rows.

    Args:
        candidates: as for `deltafit.experiments.rows.compared`.
        judged: the part.
        splits: the texts.
        adapters: the folder of the adapter that stands for each method, by its row's name.
        runs: what the run is called that it is of.

    Raises:
        DeltafitError: an adapter or the base cannot be read.
    """
    part, train = splits.parts()[judged], splits.train
    counts = np.bincount(np.asarray(train.labels), minlength=len(train.label_names))
    return Evidence(
        labels=np.asarray(part.labels),
        label_names=train.label_names,
        train_counts=tuple(int(count) for count in counts),
        answers={
            str(each.row["name"]): each.answers
            for each in candidates
            if isinstance(each, Candidate) and each.answers is not None
        },
        changes=changes_of_runs(adapters),
        runs=runs,
    )
