"""The pairs that were run, as they are kept, and the figures of the table taken from them."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import deltafit
from deltafit.files import read_json
from works import OURS

LAST = 5  # steps whose mean loss is shown

Pair = dict[str, Any]
"""What every side of a work gave in one round, by side; and ``machine``, ``work``, ``code`` (in the
speed benchmark) and ``wall_seconds``."""


def path_of(output: Path, name: str, pair: int) -> Path:
    """Return where a pair is kept."""
    return output / f"{name.replace(' ', '-').replace(',', '')}--{pair}.json"


def read_pairs(output: Path, name: str) -> list[Pair]:
    """Return the pairs of a work that are kept."""
    return [read_json(path) for path in paths_of(output, name)]


def paths_of(output: Path, name: str) -> list[Path]:
    """Return where the pairs of a work are kept."""
    return sorted(output.glob(path_of(output, name, 0).name.replace("--0", "--*")))


def digest_of_code() -> str:
    """Return a short digest of deltafit's sources: what was measured, whatever its version says."""
    root = Path(deltafit.__file__).parent
    digest = blake2b(digest_size=6)
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def ratios(pairs: Iterable[Pair], side: str, ours: str = OURS) -> list[float]:
    """Return a side's time for a token divided by deltafit's, pair by pair."""
    both = (pair for pair in pairs if side in pair and ours in pair)
    return [pace(pair[side]) / pace(pair[ours]) for pair in both]


def pace(run: dict[str, Any]) -> float:
    """Return the seconds that a run took for a real token, or for a text of prediction."""
    return float(run["seconds"] / run["tokens"])


def memory_shares(pairs: Iterable[Pair], side: str) -> list[float]:
    """Return deltafit's memory above the imports as a share of a side's, pair by pair."""
    return [pair[OURS]["memory_above_floor"] / pair[side]["memory_above_floor"] for pair in pairs]


def roofline_shares(pairs: Iterable[Pair]) -> list[float]:
    """Return the matrix products' share of deltafit's time, pair by pair."""
    return [pair[OURS]["roofline_seconds"] / pair[OURS]["seconds"] for pair in pairs]


def without_products(pairs: Iterable[Pair], side: str) -> list[float]:
    """Return a side's time divided by deltafit's without its matrix products, pair by pair."""
    both = [*pairs]
    return [
        ratio / (1 - share)
        for ratio, share in zip(ratios(both, side), roofline_shares(both), strict=True)
    ]


def last_loss(run: dict[str, Any]) -> float:
    """Return the mean loss of a run's last steps."""
    return mean(run["losses"][-LAST:])


def fifths(losses: Sequence[float]) -> list[float]:
    """Return the mean losses of the five fifths of a run of at least five steps."""
    edges = [round(len(losses) * part / 5) for part in range(6)]
    return [mean(losses[start:end]) for start, end in pairwise(edges)]


def typical(pairs: Iterable[Pair], side: str, figure: Callable[[dict[str, Any]], float]) -> float:
    """Return the median of a figure of a side's runs."""
    return median(figure(pair[side]) for pair in pairs if side in pair)


def described(work: Any) -> Any:
    """Return what a work is as it is kept with its pairs: dataclasses as JSON values."""
    return json.loads(json.dumps(work, default=asdict))


def missing(
    output: Path, works: Mapping[str, Any], count: int, facts: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Return the pairs that are not kept yet, the first of every work before any second one.

    Args:
        output: where pairs are kept.
        works: by name.
        count: pairs of each that are to be there.
        facts: of the machine.

    Raises:
        SystemExit: what is kept is of another machine, or of a work that was another then; no
            median is taken of both.
    """
    for name, work in works.items():
        for path in paths_of(output, name):
            refuse_others(path, {"machine": dict(facts), "work": described(work)})
    return [
        (name, pair)
        for pair in range(count)
        for name in works
        if not path_of(output, name, pair).is_file()
    ]


def refuse_others(path: Path, now: Mapping[str, Any]) -> None:
    """Leave with a sentence if a record that is kept is of something else than what is run now.

    Args:
        path: of the record.
        now: what must be the same, by the record's keys.
    """
    record = read_json(path)
    for key, value in now.items():
        if record[key] != value:
            sys.exit(
                f"{path} was measured with another {key}: {record[key]}, and now it is {value}. "
                "Delete it, or keep the new ones elsewhere with --output."
            )


def expected_seconds(output: Path, names: Iterable[str]) -> dict[str, float]:
    """Return how long a pair of each work will take, judging by the pairs that are kept.

    A work that was never run is taken to be like the mean of the others; without any, nothing is
    expected and the result is empty.
    """
    names = list(names)
    walls = {name: [pair["wall_seconds"] for pair in read_pairs(output, name)] for name in names}
    known = {name: median(times) for name, times in walls.items() if times}
    if not known:
        return {}
    return dict.fromkeys(names, mean(known.values())) | known
