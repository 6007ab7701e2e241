"""``compare``: several methods and cheap baselines on the same rows, and what that says."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltafit.data import Splits
from deltafit.errors import TrainingError, UsageError
from deltafit.experiments.budget import sized_to
from deltafit.experiments.joining import Outcome, check_joinable, run_joined
from deltafit.experiments.rank_plot import learned_ranks
from deltafit.experiments.report import verdict, write_report
from deltafit.experiments.rows import (
    Candidate,
    Failure,
    Row,
    baselines,
    candidate_of,
    compared,
    evidence_of,
    loss_history,
)
from deltafit.experiments.tables import comparison_markdown
from deltafit.methods import Method, parse_method
from deltafit.training.accelerator import processes
from deltafit.training.config import RunConfig
from deltafit.training.features import FrozenFeatures
from deltafit.training.folders import begun, finished_metrics
from deltafit.training.identity import run_content
from deltafit.training.preparation import structure_of
from deltafit.training.progress import Reporter, Silent
from deltafit.training.run import execute
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import check_methods, load_data

DEFAULT_METHODS = ("head", "last-block", "lora", "full")
_Before = dict[tuple[int, int], dict[str, Any]]  # by seed and positions that a method takes
_LONGEST_NAME = 80  # characters; file systems allow 255 bytes


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: holds ``report.html``, ``report.md`` with ``plots/``, ``comparison.csv``,
            ``comparison.json`` and ``runs/``, each run as ``train`` leaves it.
        rows: one a method or baseline; see ``deltafit.experiments.tables``.
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


def compare(
    model: str,
    data: str | DataConfig,
    output: str | Path,
    *,
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    seeds: Sequence[int] = (0,),
    head: HeadConfig = HeadConfig(),
    settings: TrainingSettings = TrainingSettings(),
    budget: int | None = None,
    jointly: bool = False,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Comparison:
    """Train every method with every seed on the same splits, and judge all on the same rows.

    Rows are those of the test part; without one, of the validation part, which also chose the
    checkpoints, as a note then says.

    Args:
        model: a folder with a transformers checkpoint, a catalogue name or a hub name.
        data: a file, folder or catalogue name; ``DataConfig`` for all that can be said of it.
        output: the comparison's folder; refused if it exists, unless ``resume``.
        methods: what to compare, each a method or its text, such as ``"lora:rank=4"``.
        seeds: each method is trained once a seed; the splits stay the same.
        head: which head all of them train, and where it starts.
        settings: the hyperparameters; the learning rate is each method's own unless given.
        budget: about how many parameters each method is to train besides the head: those with a
            size (LoRA's rank) get the nearest one; a note in each row says which.
        jointly: train LoRA runs of all settings and seeds at once, on one shared base model; each
            comes out as by itself, up to rounding and which elements dropout drops.
        resume: keep finished runs and go on with the unfinished one. Methods and seeds may be
            others than before; all else must be the same.
        reporter: told how the work goes; silent by default.

    A run whose training fails by itself (it diverges) is left out of its method's row, which says
    so; a method of which all runs fail is a row of that alone. The others go on.

    Raises:
        DeltafitError: the input cannot be used.
        UsageError: an argument makes no sense, a method does not fit the model, or ``output`` is
            taken.
        Interrupted: the process was asked to stop; the comparison can be resumed.
    """
    reporter = reporter or Silent()
    remarks = _chosen(methods, budget, model, head)
    _check([method for method, _ in remarks], seeds)
    data = DataConfig(data) if isinstance(data, str) else data
    splits = load_data(data)
    _judged_part(splits)  # refuse before anything is written
    folder = Path(output)
    runs = itertools.product((method for method, _ in remarks), seeds)
    configs = [RunConfig(model, data, m, head, replace(settings, seed=seed)) for m, seed in runs]
    check_methods(configs)
    if jointly:
        check_joinable(configs)
    with begun(folder, _content(configs, splits), resume=resume, may_change=("methods", "seeds")):
        features = FrozenFeatures(model, splits, settings.max_length, reporter)
        return _compare(configs, splits, features, folder, reporter, resume, jointly, dict(remarks))


def _compare(
    configs: Sequence[RunConfig],
    splits: Splits,
    features: FrozenFeatures,
    folder: Path,
    reporter: Reporter,
    resume: bool,
    jointly: bool,
    remarks: Mapping[Method, str | None],
) -> Comparison:
    """Do every run that is not finished, and write the report."""
    folders = {config: folder / "runs" / folder_name(config) for config in configs}
    joined: dict[RunConfig, Outcome] = {}
    if jointly:
        joined = run_joined(configs, splits, folders, features, reporter, resume=resume)
    first, judged = configs[0], _judged_part(splits)
    seeds = list(dict.fromkeys(config.settings.seed for config in configs))
    candidates: list[Candidate | Failure] = [
        *baselines(splits, judged, features, first.settings.seed, reporter)
    ]
    histories, figures = dict[str, Any](), dict[str, Any]()
    adapters: dict[str, Path] = {}
    facts: dict[str, Any] = {"model": first.model, "judged_on": judged, "data": splits.facts}
    facts |= {"head": asdict(first.head), "settings": asdict(first.settings)}
    before: _Before = {}
    for method in dict.fromkeys(config.method for config in configs):
        finished: dict[int, tuple[Path, dict[str, Any]]] = {}
        failed: list[str] = []
        for config in (config for config in configs if config.method == method):
            run, seed, outcome = folders[config], config.settings.seed, joined.get(config)
            try:
                if isinstance(outcome, TrainingError):
                    raise outcome
                metrics = outcome or _run(config, splits, run, features, reporter, resume, before)
            except TrainingError as error:
                failed.append(f"with seed {seed} {error.what}" if len(seeds) > 1 else error.what)
                reporter.say(f"{method} {failed[-1]}")
                continue
            before[seed, method.taken_positions] = metrics["before"]
            finished[seed] = run, metrics
        if not finished:
            candidates.append(Failure(str(method), method.result_name, failed[0]))
            continue
        candidates.append(
            candidate_of(method, [*finished.values()], judged, splits, failed, remarks[method])
        )
        # One run stands for the method: a mean of curves is none.
        seed, (run, metrics) = next(iter(finished.items()))
        name = f"{method}, seed {seed}" if len(seeds) > 1 else str(method)
        histories[name] = loss_history(metrics)
        figures[name] = metrics["after"][judged]
        adapters[name] = run / "adapter"
        facts.setdefault("precision", {})[name] = metrics["precision"]
        facts["environment"] = metrics["environment"] | metrics["versions"]
    rows = compared(candidates)
    if processes().is_main_process:
        ranks = {name: learned_ranks(adapter) for name, adapter in adapters.items()}
        evidence = evidence_of(candidates, judged, splits, adapters)
        write_report(folder, rows, histories, figures, ranks, facts, evidence)
    return Comparison(folder, rows, verdict(rows), facts)


def _chosen(
    methods: Sequence[str | Method], budget: int | None, model: str, head: HeadConfig
) -> list[tuple[Method, str | None]]:
    """Return the methods, sized to a budget if there is one, and what their rows say of that."""
    parsed = [parse_method(m) if isinstance(m, str) else m for m in methods]
    if budget is None:
        return [(method, None) for method in parsed]
    sized = sized_to(budget, parsed, *structure_of(model, head))
    return [(each.method, each.note) for each in sized]


def _content(configs: Sequence[RunConfig], splits: Splits) -> dict[str, Any]:
    """Return what ``run.json`` holds; methods and seeds may change, as runs are kept one by one."""
    content: dict[str, Any] = run_content(configs[0], splits)
    del content["config"]["method"], content["config"]["settings"]["seed"]
    return {
        "methods": list(dict.fromkeys(str(config.method) for config in configs)),
        "seeds": list(dict.fromkeys(config.settings.seed for config in configs)),
        **content,
    }


def _check(methods: Sequence[Method], seeds: Sequence[int]) -> None:
    for what, values in (("method", methods), ("seed", seeds)):
        if not values:
            raise UsageError(f"Give at least one {what} to compare.")
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise UsageError(f"The {what} {twice[0]} is given twice; the runs would be the same.")


def _judged_part(splits: Splits) -> str:
    if splits.test is not None:
        return "test"
    if splits.validation is not None:
        return "validation"
    raise UsageError(
        "There is nothing to judge on: no test part, and --validation none. Give --test-data, or "
        "leave a validation part."
    )


def folder_name(config: RunConfig) -> str:
    """Return a name any file system takes; with a hash where the method's text cannot be seen."""
    text = str(config.method)
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=.+-") else "_" for c in text)
    if len(text) > _LONGEST_NAME or set(text) - set(safe) - set(":,"):
        safe = f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{safe}-seed{config.settings.seed}"


def _run(
    config: RunConfig,
    splits: Splits,
    folder: Path,
    features: FrozenFeatures,
    reporter: Reporter,
    resume: bool,
    before: _Before,
) -> dict[str, Any]:
    """Return the metrics of a run, finished already or executed now.

    Every method starts from the same untouched model, so that is measured once, but for those
    that leave texts fewer tokens.
    """
    with begun(folder, run_content(config, splits), resume=resume):
        metrics = finished_metrics(folder)
        if metrics is None:
            reporter.say(f"{config.method}, seed {config.settings.seed}")
            metrics = execute(
                config, splits, folder,
                reporter=reporter, resume=resume, features=features,
                before=before.get((config.settings.seed, config.method.taken_positions)),
            ).metrics  # fmt: skip
    return metrics
