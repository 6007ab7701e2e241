"""``compare``: several methods and cheap baselines on the same rows, and what that says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltafit.data import Splits
from deltafit.errors import TrainingError
from deltafit.experiments.arms import Arm, Experiment, check_distinct, sized
from deltafit.experiments.baselines import score_baselines
from deltafit.experiments.doctor import consult
from deltafit.experiments.joining import check_joinable, run_joined
from deltafit.experiments.judgement import Comparison, judge_runs, judged_part
from deltafit.experiments.rows import baselines
from deltafit.experiments.running import Outcome, SharedFeatures, do_runs
from deltafit.experiments.tracked import TrackedRuns, tracked_runs
from deltafit.files import safe_name
from deltafit.methods import Method, parse_method
from deltafit.training.config import RunConfig
from deltafit.training.folders import begun, finished_metrics
from deltafit.training.identity import run_content
from deltafit.training.progress import Reporter, Silent
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.tracking import Tracking, check_trackers
from deltafit.training.train import check_methods, load_data

DEFAULT_METHODS = ("head", "last-block", "lora", "full")


@dataclass(frozen=True)
class NamedFolders:
    """Folders of a comparison's runs, called by method and seed; no other process writes there.

    Attributes:
        root: the comparison's folder.
        splits: the texts.
        resume: whether runs that were begun are gone on with.
        tracked: what follows the runs.
    """

    root: Path
    splits: Splits
    resume: bool
    tracked: TrackedRuns

    def folder(self, config: RunConfig) -> Path:
        """Return a run's folder."""
        return self.root / "runs" / folder_name(config)

    def tracking(self, config: RunConfig) -> Tracking:
        """Return what follows a run."""
        return self.tracked.of(config)

    def outcome(self, config: RunConfig) -> Outcome | None:
        """Return a finished run's metrics. One that failed is not finished."""
        return finished_metrics(self.folder(config))

    @contextmanager
    def begun(self, config: RunConfig, *, wait: bool) -> Iterator[bool]:
        """Begin a run, or go on with it."""
        content = run_content(config, self.splits)
        with begun(self.folder(config), content, resume=self.resume):
            yield True

    def failed(self, config: RunConfig, error: TrainingError) -> None:
        """Keep nothing: it is tried again when the comparison is resumed."""


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
    trackers: tuple[str, ...] = (),
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
        trackers: as those of ``train``; the runs are a group of the folder's name in them.
        reporter: told how the work goes; silent by default.

    A run whose training fails by itself (it diverges) is left out of its method's row, which says
    so; a method of which all runs fail is a row of that alone. The others go on.

    Raises:
        DeltafitError: the input cannot be used, or the doctor found an error.
        UsageError: an argument makes no sense, a method does not fit the model, or ``output`` is
            taken.
        Interrupted: the process was asked to stop; the comparison can be resumed.
    """
    reporter = reporter or Silent()
    arms = _arms(methods, settings, budget, model, head)
    check_distinct("seed", seeds)
    data = DataConfig(data) if isinstance(data, str) else data
    splits = load_data(data)
    judged = judged_part(splits)  # refuse before anything is written
    experiment = Experiment(model, data, head, arms, tuple(seeds))
    configs = experiment.runs()
    check_methods(configs)
    folder = Path(output)
    with begun(folder, _content(configs, splits), resume=resume, may_change=("methods", "seeds")):
        tracked = tracked_runs(check_trackers(trackers), folder, experiment)
        folders = NamedFolders(folder, splits, resume, tracked)
        return _compared(experiment, splits, judged, folders, reporter, jointly=jointly)


def _arms(
    methods: Sequence[str | Method],
    settings: TrainingSettings,
    budget: int | None,
    model: str,
    head: HeadConfig,
) -> tuple[Arm, ...]:
    """Return the methods as rows, sized to a budget if there is one."""
    parsed = [parse_method(m) if isinstance(m, str) else m for m in methods]
    arms = tuple(Arm(str(method), method, settings) for method in parsed)
    arms = arms if budget is None else sized(arms, budget, model, head)
    check_distinct("method", [arm.method for arm in arms])
    return arms


def _compared(
    experiment: Experiment,
    splits: Splits,
    judged: str,
    folders: NamedFolders,
    reporter: Reporter,
    *,
    jointly: bool,
) -> Comparison:
    """Do every run that is not finished, and write the report."""
    configs = experiment.runs()
    if jointly:
        check_joinable(configs)
    folders.tracked.tell(folders.tracked.trackers, reporter)
    if any(folders.outcome(config) is None for config in configs):
        firsts = [experiment.runs_of(arm)[0] for arm in experiment.arms]
        consult(firsts, splits, reporter)
    features = SharedFeatures(experiment.model, splits, reporter)
    joined = run_joined(configs, splits, folders, features, reporter) if jointly else {}
    frozen, seed = features.of(configs[0]), configs[0].settings.seed
    cheap = baselines(score_baselines(splits, judged, frozen, seed, reporter), splits, judged)
    outcomes = do_runs(configs, splits, folders, features, reporter, known=joined)
    folders.tracked.complete(outcomes, reporter)
    return judge_runs(experiment, outcomes, folders, splits, cheap, folders.root, reporter=reporter)


def _content(configs: Sequence[RunConfig], splits: Splits) -> dict[str, Any]:
    """Return what ``run.json`` holds; methods and seeds may change, as runs are kept one by one."""
    content: dict[str, Any] = run_content(configs[0], splits)
    del content["config"]["method"], content["config"]["settings"]["seed"]
    return {
        "methods": list(dict.fromkeys(str(config.method) for config in configs)),
        "seeds": list(dict.fromkeys(config.settings.seed for config in configs)),
        **content,
    }


def folder_name(config: RunConfig) -> str:
    """Return a name any file system takes, of the method and the seed."""
    return f"{safe_name(str(config.method))}-seed{config.settings.seed}"
