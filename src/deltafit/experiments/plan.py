"""``plan``: which methods, ranks, lengths and batches fit into a machine's memory and some time."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltafit.adapters.counting import trained_values
from deltafit.errors import UsageError
from deltafit.experiments.arms import check_distinct
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method, parse_method
from deltafit.training.config import RunConfig
from deltafit.training.cost_law import Span, total
from deltafit.training.estimating import estimate_of, memory_of
from deltafit.training.own_process import in_own_process
from deltafit.training.preparation import structure_of
from deltafit.training.progress import Reporter, Silent
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import check_methods
from deltafit.training.trial import Trial, try_run

PREFERRED: tuple[Method, ...] = (LoRA("all-linear"), LoRA(), Full(), LastBlocks(), Head())
"""What is looked at unless something is asked for, in the order in which it is preferred."""

RANKS, LENGTHS, BATCHES = (4, 8, 16, 32), (64, 128, 256, 512), (8, 16, 32)
"""The same of ranks, of the tokens that texts are cut to, and of batch sizes."""

_RANKS = ("rank", "initial_rank")

RESERVE = 0.1
"""Of the memory that a run is expected to need: what its trial may not have seen."""


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        memory: bytes that its process may hold; None for any number.
        seconds: of the whole run; None for any number.

    Raises:
        UsageError: a limit leaves nothing, or there is none.
    """

    memory: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.memory is None and self.seconds is None:
            raise UsageError("There is no limit to plan for. Give --ram, --minutes, or both.")
        for name, value in (("memory", self.memory), ("time", self.seconds)):
            if value is not None and not value > 0:
                raise UsageError(f"A run takes some {name}; a limit of {value:g} leaves none.")

    def exceeded(self, memory: int, whole: Span | None) -> tuple[str, ...]:
        """Return which limits a run would exceed, "memory" and "time"; time by its upper end."""
        too_much = self.memory is not None and memory * (1 + RESERVE) > self.memory
        too_long = self.seconds is not None and whole is not None and whole.high > self.seconds
        return ("memory",) * too_much + ("time",) * too_long


@dataclass(frozen=True)
class PlannedRun:
    """A method with a length and a batch size, and what a run of it would take.

    Attributes:
        method: of its rank, if it has one.
        max_length: tokens that texts are cut to.
        batch_size: texts in a step.
        trainable: parameters that are trained, the head's included.
        kept: share of the training texts' tokens that are left when they are cut; of those that
            are left by the largest length that was looked at.
        memory: bytes that the process is expected to hold at most.
        whole: the time of the run; None where it could not be tried.
        exceeded: limits that it does not keep.
        other_batches: sizes that keep them as well.
    """

    method: Method
    max_length: int
    batch_size: int
    trainable: int
    kept: float
    memory: int
    whole: Span | None
    exceeded: tuple[str, ...] = ()
    other_batches: tuple[int, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it keeps all limits, as far as is known."""
        return not self.exceeded and self.whole is not None


@dataclass(frozen=True)
class Fits:
    """What fits.

    Attributes:
        model: as it was asked for.
        limits: of a run.
        fitting: what keeps them, one a method and length with the quickest batch size; the best
            first: those that lose no more than a hundredth of the texts' tokens before others,
            then by the order of the methods, with the larger rank and length first.
        others: what does not, with the batch size that comes nearest.
        problems: why some could not be tried, by method.
    """

    model: str
    limits: Limits
    fitting: tuple[PlannedRun, ...]
    others: tuple[PlannedRun, ...]
    problems: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; times are in seconds, memory in bytes."""
        content = asdict(self)
        for name in ("fitting", "others"):
            for row, each in zip(content[name], getattr(self, name), strict=True):
                row["method"] = str(each.method)
        return content


def plan(
    model: str | Path,
    data: str | Path | DataConfig,
    *,
    ram: int | None = None,
    minutes: float | None = None,
    methods: Sequence[str | Method] = PREFERRED,
    ranks: Sequence[int] = RANKS,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    head: HeadConfig = HeadConfig(),
    settings: TrainingSettings = TrainingSettings(),
    reporter: Reporter | None = None,
) -> Fits:
    """Return which runs keep within a machine's memory and some time, the best first.

    Some steps are tried of each method, of its smallest and its largest rank, in processes of
    their own; see `estimate`. Nothing is written.

    Args:
        model: a folder with a transformers checkpoint, a catalogue name or a hub name.
        data: a file, folder or catalogue name; ``DataConfig`` for all that can be said of it.
        ram: bytes that a run's process may hold.
        minutes: that a run may take, from loading the model to the proven adapter.
        methods: or their texts; those you would rather have first.
        ranks: for the methods that have one.
        lengths: tokens that texts are cut to.
        batches: texts in a step.
        head: which head is trained.
        settings: all other hyperparameters; the epochs above all.
        reporter: told what is being tried; silent by default.

    Raises:
        DeltafitError: the input cannot be used, or a run fails in its first steps.
        UsageError: an argument makes no sense, or a method does not fit the model.
    """
    limits = Limits(ram, None if minutes is None else 60 * minutes)
    data = data if isinstance(data, DataConfig) else DataConfig(str(data))
    chosen = [parse_method(each) if isinstance(each, str) else each for each in methods]
    asked = {"method": chosen, "rank": ranks, "length": lengths, "batch size": batches}
    for what, values in asked.items():
        check_distinct(what, values)
    grid = [
        replace(settings, max_length=length, batch_size=batch)
        for length in sorted(lengths) for batch in sorted(batches)
    ]  # fmt: skip
    base = RunConfig(str(model), data, chosen[0], head, settings)
    families = [
        [replace(base, method=each) for each in _ranked(method, ranks)] for method in chosen
    ]
    check_methods([config for family in families for config in family])
    return _planned(str(model), families, grid, limits, reporter or Silent())


def _planned(
    model: str,
    families: Sequence[Sequence[RunConfig]],
    grid: Sequence[TrainingSettings],
    limits: Limits,
    reporter: Reporter,
) -> Fits:
    """Return what fits of each method with all its ranks, and all settings."""
    problems: dict[str, str] = {}
    fitting, others = [], []
    for family in families:
        for candidates in _family(family, grid, limits, problems, reporter):
            fit = sorted((c for c in candidates if c.fits), key=_seconds)
            if fit:
                sizes = tuple(sorted(other.batch_size for other in fit[1:]))
                fitting.append(replace(fit[0], other_batches=sizes))
            else:
                others.append(min(candidates, key=lambda c: (len(c.exceeded), c.memory)))
    fitting.sort(key=lambda candidate: candidate.kept < 0.99)  # the rest is in order
    return Fits(model, limits, tuple(fitting), tuple(others), problems)


def _ranked(method: Method, ranks: Sequence[int]) -> list[Method]:
    """Return a method with all ranks, the largest first; or itself, where it has none."""
    if method.size_setting not in _RANKS:
        return [method]
    return [method.with_size(rank) for rank in sorted(ranks, reverse=True)]


def _family(
    family: Sequence[RunConfig],
    grid: Sequence[TrainingSettings],
    limits: Limits,
    problems: dict[str, str],
    reporter: Reporter,
) -> Iterator[list[PlannedRun]]:
    """Yield the candidates of each rank of a method and each length, of all batch sizes."""
    sizes = _parameters(family)
    largest = _tried(family[0], grid, reporter)
    smallest = _tried(family[-1], grid, reporter) if len(family) > 1 else largest
    if largest.problem is not None:
        problems[str(family[0].method)] = largest.problem
    head = largest.trainable - sizes[0]
    for config, size in zip(family, sizes, strict=True):
        # What a rank costs lies between the two that were tried, by what they train.
        share = (size - sizes[-1]) / (sizes[0] - sizes[-1]) if sizes[0] > sizes[-1] else 1.0
        for length in _lengths(grid, largest):
            yield [
                _candidate(replace(config, settings=settings), place, (smallest, largest), share,
                           size + head, limits)
                for place, settings in enumerate(grid) if settings.max_length == length
            ]  # fmt: skip


def _tried(config: RunConfig, grid: Sequence[TrainingSettings], reporter: Reporter) -> Trial:
    """Try a run at the largest length that there is memory for, and foretell that of all."""
    reporter.say(f"Trying some steps of {config.method}.")
    lengths = sorted({settings.max_length for settings in grid}, reverse=True)
    batches = sorted({settings.batch_size for settings in grid})
    middle = batches[(len(batches) - 1) // 2]
    smaller = dict.fromkeys([*((length, middle) for length in lengths), (lengths[-1], batches[0])])
    trials: list[Trial] = []
    for length, batch in smaller:
        variants = [settings for settings in grid if settings.max_length <= length]
        settings = replace(config.settings, max_length=length, batch_size=batch)
        trials.append(in_own_process(try_run, replace(config, settings=settings), variants))
        if trials[-1].problem is None:
            break
    return replace(trials[-1], lengths=trials[0].lengths, variants=trials[0].variants)


def _parameters(family: Sequence[RunConfig]) -> list[int]:
    """Return how many parameters each run trains, the head apart."""
    structure, head = structure_of(family[0].model, family[0].head)
    return [trained_values(structure, config.method, head=head) for config in family]


def _lengths(grid: Sequence[TrainingSettings], trial: Trial) -> list[int]:
    """Return the lengths to look at: beyond the longest text all are the same."""
    lengths = sorted({settings.max_length for settings in grid})
    longest = max(max(part) for part in trial.lengths.values())
    shorter = [length for length in lengths if length < longest]
    return lengths[: len(shorter) + 1][::-1]


def _candidate(
    config: RunConfig,
    place: int,
    ends: tuple[Trial, Trial],
    share: float,
    trainable: int,
    limits: Limits,
) -> PlannedRun:
    """Return what a run would take, from trials of the smallest and the largest rank.

    Args:
        config: the run.
        place: of its settings among those that were asked for.
        ends: the trials.
        share: of the way from the one to the other.
        trainable: parameters that it trains.
        limits: of a run.
    """
    shares = (1 - share, share)
    memory = sum(
        part * memory_of(trial, trial.variants[place])
        for part, trial in zip(shares, ends, strict=True)
    )
    whole = None
    if all(trial.problem is None for trial in ends):
        estimates = [estimate_of(trial, [config]).whole for trial in ends]
        whole = total(each.times(part) for part, each in zip(shares, estimates, strict=True))
    tokens, settings = ends[0].lengths["train"], config.settings
    kept = sum(min(length, settings.max_length) for length in tokens) / sum(tokens)
    return PlannedRun(
        config.method, settings.max_length, settings.batch_size, trainable, kept, round(memory),
        whole, limits.exceeded(round(memory), whole),
    )  # fmt: skip


def _seconds(candidate: PlannedRun) -> float:
    return candidate.whole.seconds if candidate.whole is not None else 0.0
