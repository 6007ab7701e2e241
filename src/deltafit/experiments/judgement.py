"""Finished runs of an experiment judged: rows, a verdict and the report's files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deltafit.data import LabelledTexts, Splits
from deltafit.errors import DeltafitError, TrainingError, UsageError
from deltafit.experiments.answers import Evidence
from deltafit.experiments.arms import Arm, Experiment
from deltafit.experiments.evidence import evidence_of
from deltafit.experiments.factors import Tried
from deltafit.experiments.left_out import LEFT_OUT_FILE, LeftOut, left_out
from deltafit.experiments.page_parts import Section, pictured, runs_in_order
from deltafit.experiments.published import published_section
from deltafit.experiments.questions import Look, questions_section
from deltafit.experiments.rank_plot import learned_ranks
from deltafit.experiments.recipe import Published
from deltafit.experiments.report import verdict, write_report
from deltafit.experiments.rows import (
    Candidate,
    Failure,
    Row,
    candidate_of,
    compared,
    loss_history,
)
from deltafit.experiments.run_plots import History
from deltafit.experiments.running import Outcome, RunFolders
from deltafit.experiments.tables import comparison_markdown
from deltafit.experiments.training_gap import gap_section
from deltafit.training.accelerator import processes
from deltafit.training.config import RunConfig
from deltafit.training.progress import Reporter, Silent


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: holds ``report.html``, ``report.md`` with ``plots/``, ``comparison.csv`` and
            ``comparison.json``.
        rows: one an arm or baseline; see ``deltafit.experiments.tables``.
        verdict: which to ship, in a sentence or two.
        facts: of the data and the machine.
    """

    folder: Path
    rows: list[Row]
    verdict: str
    facts: dict[str, Any]

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows."""
        return f"{comparison_markdown(self.rows)}\n{self.verdict}\n"


def judged_part(splits: Splits) -> str:
    """Return the part that all are judged on: test rows, or those of validation.

    Raises:
        UsageError: there is neither.
    """
    if splits.test is not None:
        return "test"
    if splits.validation is not None:
        return "validation"
    raise UsageError(
        "There is nothing to judge on: no test part, and --validation none. Give --test-data, or "
        "leave a validation part."
    )


def judge_runs(
    experiment: Experiment,
    outcomes: Mapping[RunConfig, Outcome],
    folders: RunFolders,
    splits: Splits,
    cheap: Sequence[Candidate],
    folder: Path,
    *,
    facts: Mapping[str, Any] = MappingProxyType({}),
    beside: Sequence[Section] = (),
    published: Published | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Compare what the runs of an experiment came to, and write the report.

    Args:
        experiment: its arms get a row each.
        outcomes: of all its runs.
        folders: of the runs.
        splits: the texts.
        cheap: the baselines, judged on the same rows.
        folder: where the report goes.
        facts: what else the report is to say; must be JSON.
        beside: sections of the report that come before those of its rows.
        published: figures to set beside the rows, in a section before these.
        reporter: told how the work goes; silent by default.

    Raises:
        DeltafitError: what a run left does not fit the texts.
    """
    judged, reporter = judged_part(splits), reporter or Silent()
    finished = _finished(experiment, outcomes, folders, judged, splits, folder)
    candidates = [*cheap, *finished.candidates]
    facts = {**facts, **experiment.facts(), "judged_on": judged, "data": splits.facts}
    facts |= _machine({each.name: each.metrics for each in finished.shown.values()})
    rows = compared(candidates)
    if processes().is_main_process:
        shown = finished.shown
        adapters = {row: each.folder / "adapter" for row, each in shown.items()}
        names = {row: each.name for row, each in shown.items()}
        evidence = evidence_of(candidates, judged, splits, adapters, names)
        look = _look(shown, splits.parts()[judged], folder, reporter)
        write_report(
            folder,
            rows,
            finished.histories,
            _pictured(rows, shown, judged),
            {names[row]: learned_ranks(adapter) for row, adapter in adapters.items()},
            facts,
            evidence,
            [*_sections(experiment, rows, candidates, evidence, look, published), *beside],
        )
    return Comparison(folder, rows, verdict(rows), facts)


def _sections(
    experiment: Experiment,
    rows: Sequence[Row],
    candidates: Sequence[Candidate | Failure],
    evidence: Evidence,
    look: Look,
    published: Published | None,
) -> list[Section]:
    """Return what a report says of its rows beside what it shows of every comparison."""
    arms = {arm.name: arm for arm in experiment.arms}
    tried = [
        Tried(arms[row["name"]], row, candidate.correct)
        for row, candidate in zip(rows, candidates, strict=True)
        if isinstance(candidate, Candidate) and row["kind"] == "run"
    ]
    others = gap_section(rows)
    if published is not None:
        others = [published_section(published, rows, experiment.model), *others]
    return [*questions_section(tried, evidence.changes, look), *others]


@dataclass(frozen=True)
class _Shown:
    """The run that stands for a row: of matrices, or of a table of confusions, a mean is none."""

    name: str
    folder: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Finished:
    """What the arms of an experiment came to; by the row's name, of those that are judged."""

    candidates: list[Candidate | Failure]
    shown: dict[str, _Shown]
    histories: dict[str, list[History]]


def _finished(
    experiment: Experiment,
    outcomes: Mapping[RunConfig, Outcome],
    folders: RunFolders,
    judged: str,
    splits: Splits,
    report: Path,
) -> _Finished:
    found, varied = _Finished([], {}, {}), experiment.varied()
    for arm in experiment.arms:
        finished, failed = _came_to(experiment, arm, outcomes, folders)
        if not finished:
            found.candidates.append(Failure(arm.name, arm.method.result_name, failed[0]))
            continue
        runs = [*finished.values()]
        candidate = candidate_of(arm.name, arm.method, runs, judged, splits, failed, arm.remark)
        candidate.row |= _settings_of(experiment, arm) | {"varied": varied[arm.name]}
        candidate.row["head_learning_rate"] = runs[0][1]["head_learning_rate"]
        candidate.row["folder"] = Path(os.path.relpath(_to_ship(runs), report)).as_posix()
        found.candidates.append(candidate)
        found.histories[arm.name] = [loss_history(metrics) for _, metrics in runs]
        seed, run = next(iter(finished.items()))
        name = f"{arm.name}, seed {seed}" if len(experiment.seeds) > 1 else arm.name
        found.shown[arm.name] = _Shown(name, *run)
    return found


def _to_ship(runs: Sequence[tuple[Path, dict[str, Any]]]) -> Path:
    """Return the folder of the seed that does best on validation rows, or else of the first."""

    def on_validation(run: tuple[Path, dict[str, Any]]) -> float:
        return float(run[1]["after"].get("validation", {}).get("accuracy", 0.0))

    return max(runs, key=on_validation)[0]


def _settings_of(experiment: Experiment, arm: Arm) -> dict[str, Any]:
    """Return what a row says of how its settings came about."""
    first = experiment.runs_of(arm)[0]
    return {
        "learning_rate": first.learning_rate,
        "searched": list(arm.searched),
        "trials": arm.trials,
    }


def _machine(shown: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the metrics of runs say of where and how they were trained, if there are any."""
    if not shown:
        return {}
    found = {name: metrics["environment"] | metrics["versions"] for name, metrics in shown.items()}
    first, *others = found.values()
    alike = {
        key: value for key, value in first.items() if all(each.get(key) == value for each in others)
    }
    facts = {
        key: {name: metrics[key] for name, metrics in shown.items()}
        for key in ("precision", "attention_precision")
    }
    for key in {key: None for each in found.values() for key in each if key not in alike}:
        facts[key] = {name: each.get(key) for name, each in found.items()}
    return {**facts, "environment": alike}


def _look(
    shown: Mapping[str, _Shown], part: LabelledTexts, folder: Path, reporter: Reporter
) -> Look:
    """Return what finds a row's adapter without each kind of matrix, or says why it cannot."""

    def look(name: str) -> LeftOut | None:
        run, kept = shown[name], folder / LEFT_OUT_FILE
        try:
            return left_out(run.folder, run.metrics["run_hash"], part, kept, reporter)
        except DeltafitError as error:  # which is no reason to have no report
            reporter.say(f"No kind of matrix is left out of {name}: {error}")
            return None

    return look


def _pictured(
    rows: Sequence[Row], shown: Mapping[str, _Shown], judged: str
) -> dict[str, dict[str, Any]]:
    """Return figures of the runs that get pictures of their own, by their names."""
    judged_rows = [row for row in rows if not row["failure"]]
    names, _ = pictured([row["name"] for row in runs_in_order(judged_rows)])
    runs = [shown[name] for name in names]
    return {run.name: run.metrics["after"][judged] for run in runs}


def _came_to(
    experiment: Experiment,
    arm: Arm,
    outcomes: Mapping[RunConfig, Outcome],
    folders: RunFolders,
) -> tuple[dict[int, tuple[Path, dict[str, Any]]], list[str]]:
    """Return folder and metrics of an arm's finished runs by seed, and why others failed."""
    finished: dict[int, tuple[Path, dict[str, Any]]] = {}
    failed: list[str] = []
    for config in experiment.runs_of(arm):
        seed, outcome = config.settings.seed, outcomes[config]
        if isinstance(outcome, TrainingError):
            several = len(experiment.seeds) > 1
            failed.append(f"with seed {seed} {outcome.what}" if several else outcome.what)
        else:
            finished[seed] = folders.folder(config), outcome
    return finished, failed
