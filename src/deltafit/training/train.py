"""``train``: from a model's name and a table of labelled texts to an adapter on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

from deltafit.adapters import check_fits, quantisable
from deltafit.adapters.statistics import check_rounded
from deltafit.data import Splits, load_splits
from deltafit.methods import LoRA, Method, parse_method
from deltafit.training.config import RunConfig
from deltafit.training.folders import begun, finished_metrics
from deltafit.training.identity import run_content
from deltafit.training.preparation import longest_text, structure_of
from deltafit.training.progress import Reporter, Silent
from deltafit.training.run import RunResult, execute
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.tracking import Tracking, check_trackers, offline_sentence


def train(
    model: str | Path,
    data: str | Path | DataConfig,
    output: str | Path,
    *,
    method: str | Method = LoRA(),
    head: HeadConfig = HeadConfig(),
    settings: TrainingSettings = TrainingSettings(),
    resume: bool = False,
    trackers: tuple[str, ...] = (),
    reporter: Reporter | None = None,
    consult: Callable[[RunConfig, Splits], None] | None = None,
) -> RunResult:
    """Train one method and keep its adapter.

    Args:
        model: a folder with a transformers checkpoint, a catalogue name or a hub name.
        data: a file, folder or catalogue name; ``DataConfig`` for all that can be said of it.
        output: the run's folder; refused if it exists, unless ``resume``.
        method: what to train, or its text, such as ``"lora:rank=4"``.
        head: which head, and where it starts.
        settings: the hyperparameters.
        resume: go on with the unfinished run in ``output``; a finished one is returned as it is.
        trackers: ``"tensorboard"``, ``"wandb"`` or another name that Accelerate knows.
        reporter: told how the work goes; silent by default.
        consult: asked about the run and its texts before the work starts, unless it is finished;
            what it raises stops the run, which then leaves nothing.

    Raises:
        DeltafitError: the input cannot be used, or training failed.
        UsageError: an argument makes no sense, or ``output`` is taken.
        Interrupted: the process was asked to stop; the run can be resumed.
    """
    data = data if isinstance(data, DataConfig) else DataConfig(str(data))
    method = parse_method(method) if isinstance(method, str) else method
    config, reporter = RunConfig(str(model), data, method, head, settings), reporter or Silent()
    splits = load_data(data)
    check_methods([config])
    folder = Path(output)
    with begun(folder, run_content(config, splits), resume=resume):
        finished = finished_metrics(folder)
        if finished is not None:
            return RunResult(folder, finished)
        trackers = check_trackers(trackers)
        sentence = offline_sentence(trackers, folder / "logs")
        if sentence is not None:
            reporter.say(sentence)
        if consult is not None:
            consult(config, splits)
        return execute(
            config, splits, folder, reporter=reporter, resume=resume,
            tracking=Tracking(trackers, folder / "logs"),
        )  # fmt: skip


def load_data(data: DataConfig) -> Splits:
    """Load the splits that a configuration describes."""
    return load_splits(
        data.data,
        test_data=data.test_data,
        validation=data.validation,
        text_column=data.text_column,
        label_column=data.label_column,
        seed=data.split_seed,
        balance=data.balance,
        limit=data.limit,
        drop_duplicates=data.drop_duplicates,
    )


def check_methods(configs: Sequence[RunConfig]) -> None:
    """Raise a DeltafitError if a method does not fit the model, before anything is computed.

    So too if the base weights cannot be stored as they are to be.

    Args:
        configs: runs on one model with one head.
    """
    structure, head = structure_of(configs[0].model, configs[0].head)
    stored: tuple[str, ...] = ()
    if configs[0].settings.base_weights != "float32":
        stored = quantisable(structure)  # or it raises
    for method in dict.fromkeys(each.method for each in configs):
        targets, _ = check_fits(structure, method, head=head)
        check_rounded(method, set(targets) & set(stored))
    for config in configs:
        longest_text(config, structure)  # or it raises
