"""Every flag of every remedy, pasted as it stands, takes its finding away."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import DeltafitError
from deltafit.experiments.doctor import doctor
from deltafit.experiments.findings import Finding
from tests.experiments.cases import Rows, healthy_rows, write_rows
from tests.training.tiny_runs import LABELS, save_model

FREE = ("label noise", "small classes")
"""What only the owner of the rows can mend: the remedy names them and their file."""


def alternatives(remedy: str) -> list[list[str]]:
    """The values of ``--set`` of each remedy that stands for itself."""
    return [
        shlex.split(flags.replace("--set", ""))
        for flags in re.findall(r"(?:--set (?:'[^']*'|\S+) ?)+", remedy)
    ]


def twice(rows: Rows) -> Rows:
    return [*rows, *rows[:9], (rows[20][0], LABELS[(LABELS.index(rows[20][1]) + 1) % 3])]


def uneven(rows: Rows) -> Rows:
    return [row for index, row in enumerate(rows) if row[1] != "mixed" or index % 5 == 0]


PLANTED: dict[str, dict[str, Any]] = {
    "learning rate": {"settings": "learning_rate: 1e-7"},
    "learning rate in a grid": {
        "runs": "[{method: lora, grid: {rank: [2, 4], learning_rate: [1e-7, 1e-6]}}]",
    },
    "few steps": {"settings": "batch_size: 100"},
    "few steps of one row": {"runs": "[head, {method: lora, settings: {batch_size: 100}}]"},
    "batch": {"settings": "batch_size: 400"},
    "batch of steps": {"settings": "batch_size: 2, accumulation: 300"},
    "evaluations": {"settings": "evaluate_every: 500"},
    "patience": {"settings": "patience: 3"},
    "patience without rows": {"settings": "patience: 2", "data": "validation: none"},
    "warm-up": {"settings": "warmup: 0.9"},
    "ranks": {"runs": "[{method: 'adalora:interval=50'}]"},
    "ranks of a share": {"runs": "[{method: 'adalora:warmup=0.5,final=0.5'}]"},
    "ranks of a grid": {"runs": "[{method: adalora, grid: {interval: [50, 60]}}]"},
    "targets": {"runs": "[{method: 'lora:target_modules=qery'}]"},
    "targets of a grid": {"runs": "[{method: lora, grid: {target_modules: [[qery]]}}]"},
    "targets in blocks": {"runs": "[{method: 'lora:layers=9'}]"},
    "targets in some blocks": {
        "runs": "[{method: 'lora:target_modules=0.attention.self.query+value'}]",
    },
    "targets without a place": {"runs": "[{method: 'prompt:count=64'}]"},
    "truncation": {"settings": "max_length: 4"},
    "length": {"settings": "max_length: 256"},
    "imbalance": {"train": uneven},
    "duplicates and copies": {"train": twice, "test": twice},
    "contradictory labels": {"train": twice},
}
SUBJECTS = {
    *("learning rate", "few steps", "batch", "evaluations", "patience", "warm-up", "ranks"),
    *("targets", "truncation", "length", "imbalance", "duplicates", "copies"),
    "contradictory labels",
}


def written(folder: Path, model: str, planted: dict[str, Any]) -> Path:
    rows: Callable[[Rows], Rows] = planted.get("train", lambda rows: rows)
    train = rows(healthy_rows(240))
    test = [*healthy_rows(30, start=240), *(train[:9] if "test" in planted else [])]
    path, data = folder / "mine.yaml", planted.get("data", "validation: 0.2")
    files = [write_rows(folder / f"{n}.csv", r) for n, r in (("train", train), ("test", test))]
    usual = "" if "batch_size" in planted.get("settings", "") else "batch_size: 8, "
    longest = "" if "max_length" in planted.get("settings", "") else "max_length: 32, "
    runs = planted.get("runs", "[{method: lora}, {method: full}]").replace(
        "[head,", "[{method: head},"
    )
    path.write_text(
        f"model: {model}\n"
        f"data: {{data: {files[0]}, test_data: {files[1]}, {data}}}\n"
        f"settings: {{{usual}{longest}{planted.get('settings', '')}}}\n"
        f"runs: {runs}\n"
    )
    return path


def told(path: Path, changes: Sequence[str] = ()) -> dict[str, Finding]:
    """The findings, by subject and place."""
    return {
        f"{each.subject}: {re.sub(r'[0-9.,]+', '', each.sentence)[:60]}": each
        for each in doctor(path, overrides=changes)
    }


@pytest.mark.parametrize("what", PLANTED)
def test_a_remedy_mends(what: str, model: str, tmp_path: Path) -> None:
    path = written(tmp_path, model, PLANTED[what])
    found = told(path)
    subjects = {each.subject for each in found.values()}
    assert any(what.startswith(subject) for subject in subjects), subjects
    for key, finding in found.items():
        assert finding.remedy
        choices = alternatives(finding.remedy)
        assert choices or finding.subject in (*FREE, "padding"), finding
        for changes in choices:
            try:
                left = told(path, changes)
            except DeltafitError as error:
                pytest.fail(f"{finding.remedy}: {error}")
            assert key not in left, (changes, left[key].sentence)


def test_everything_that_flags_mend_is_planted_here() -> None:
    assert all(any(what.startswith(subject) for what in PLANTED) or subject == "copies"
               for subject in SUBJECTS)  # fmt: skip


def test_rows_that_only_their_owner_can_mend_are_named_with_their_file(
    model: str, tmp_path: Path
) -> None:
    train = healthy_rows(240)
    for index in range(0, 60, 6):
        train[index] = (train[index][0], LABELS[1])
    found = told(written(tmp_path, model, {"train": lambda _: train, "data": "validation: none"}))
    (noise,) = (each for each in found.values() if each.subject == "label noise")
    numbers = re.search(r"rows ([0-9, ]+)( and [0-9]+ more)? of (\S+train\.csv)", noise.remedy)
    assert numbers is not None and numbers[3] == str(tmp_path / "train.csv")
    listed = [int(number) for number in numbers[1].split(",")]
    assert len(listed) >= 5 and sum((number - 1) % 6 == 0 for number in listed) >= 5


def test_a_checkpoints_own_head_is_started_anew(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", task="classification")
    path = written(tmp_path, model, {})
    found = told(path)
    (key,) = (key for key, each in found.items() if each.subject == "head")
    assert found[key].remedy.startswith("--set head.head=mean (")
    assert key not in told(path, ["head.head=mean"])
