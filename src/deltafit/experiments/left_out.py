"""Which kinds of matrices a trained adapter needs: each left out in turn, nothing trained again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltafit.adapters import read_adapter
from deltafit.adapters.low_rank import changes_of
from deltafit.data import LabelledTexts
from deltafit.errors import DeltafitError
from deltafit.experiments.rank_judging import Judge, parts_of, titles_of
from deltafit.experiments.resampling import BoolArray
from deltafit.experiments.statistics import PairedComparison, corrected, paired_comparison
from deltafit.files import read_json, write_json_atomically
from deltafit.prediction.folder import load_saved
from deltafit.prediction.location import adapter_folder
from deltafit.tasks.inference import BATCH_TOKENS
from deltafit.training.progress import Counted, Reporter

LEFT_OUT_FILE = "left_out.json"
MOST_ROWS = 1_000  # that are judged once for each kind


@dataclass(frozen=True)
class KindLeftOut:
    """An adapter without the ΔW of one kind of matrix, in all blocks.

    Attributes:
        title: of the kind, such as "query".
        energy: its share of ‖ΔW‖², 0 to 1.
        accuracy: without it.
        to_whole: that minus the whole adapter's, paired, and corrected for the number of kinds.
    """

    title: str
    energy: float
    accuracy: float
    to_whole: PairedComparison


@dataclass(frozen=True)
class LeftOut:
    """What each kind of matrix is worth to one adapter.

    Attributes:
        count: judged rows that were looked at.
        total: judged rows that there are.
        accuracy: of the whole adapter on them.
        kinds: the one that is missed most first; at least two.
    """

    count: int
    total: int
    accuracy: float
    kinds: tuple[KindLeftOut, ...]


def left_out(
    folder: Path, run: str, part: LabelledTexts, kept: Path, reporter: Reporter
) -> LeftOut | None:
    """Leave out each kind of matrix of a run's adapter; None if it is no LoRA, or has one kind.

    Of many judged rows a thousand are looked at, spread evenly over them.

    Args:
        folder: of the run.
        run: what its training is known by, the ``run_hash`` of its metrics.
        part: the judged rows.
        kept: a file with what was found before, which of the same run and rows is not found again.
        reporter: told how the work goes.

    Raises:
        DeltafitError: the adapter or its base cannot be loaded.
    """
    stored = read_adapter(adapter_folder(folder))
    try:
        changes = changes_of(stored, str(folder))
    except DeltafitError:  # of a method whose ΔW is no product of two factors
        return None
    kinds = {
        name: modules
        for (kind, name), modules in parts_of(changes, matrices=False).items()
        if kind == "matrix type"
    }
    if not kinds:
        return None
    total = len(part)
    part = part.select(spread(total, MOST_ROWS))
    known = {"run": run, "rows": part.content_hash()}
    found = _kept(kept, known, [*kinds])
    if found is None:
        saved = load_saved(adapter_folder(folder))
        judge = Judge(saved, stored, part, str(folder), BATCH_TOKENS)
        advance = Counted(reporter, "without each kind of matrix", len(part) * (len(kinds) + 1))
        whole = judge.measure(stored, advance)
        without = {
            name: judge.measure(judge.without(modules), advance).correct
            for name, modules in kinds.items()
        }
        energy = {row.name: row.energy for row in judge.matrices}
        found = {
            "whole": whole.correct,
            "without": without,
            "energy": {
                name: sum(energy[module] for module in modules) for name, modules in kinds.items()
            },
        }
        _keep(kept, known, found)
    return _compared(found, titles_of(changes), total)


def spread(count: int, most: int) -> list[int]:
    """Return at most so many indices of ``count``, spread evenly."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, most)).round()]


def _compared(found: Mapping[str, Any], titles: Mapping[str, str], total: int) -> LeftOut:
    whole: BoolArray = found["whole"]
    without: Mapping[str, BoolArray] = found["without"]
    comparisons = corrected([paired_comparison(each, whole) for each in without.values()])
    kinds = [
        KindLeftOut(titles[name], found["energy"][name], float(correct.mean()), comparison)
        for (name, correct), comparison in zip(without.items(), comparisons, strict=True)
    ]
    kinds.sort(key=lambda kind: (kind.to_whole.difference, -kind.energy))
    return LeftOut(len(whole), total, float(whole.mean()), tuple(kinds))


def _keep(path: Path, known: Mapping[str, str], found: Mapping[str, Any]) -> None:
    wrong = {name: _wrong(correct) for name, correct in found["without"].items()}
    content = {**known, "count": len(found["whole"]), "whole": _wrong(found["whole"])}
    write_json_atomically(path, {**content, "without": wrong, "energy": found["energy"]})


def _wrong(correct: BoolArray) -> list[int]:
    return [int(index) for index in np.flatnonzero(~correct)]


def _kept(path: Path, known: Mapping[str, str], kinds: Sequence[str]) -> dict[str, Any] | None:
    """Return what was found before of the same run, rows and kinds."""
    try:
        content = read_json(path)
        if any(content[key] != value for key, value in known.items()):
            return None
        if [*content["without"]] != [*kinds]:
            return None
        count = content["count"]
        return {
            "whole": _correct(content["whole"], count),
            "without": {k: _correct(wrong, count) for k, wrong in content["without"].items()},
            "energy": {name: float(content["energy"][name]) for name in kinds},
        }
    except (DeltafitError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None  # there is none, or somebody wrote in it: it is found again


def _correct(wrong: Sequence[int], count: int) -> BoolArray:
    correct = np.ones(count, dtype=bool)
    correct[list(wrong)] = False
    return correct
