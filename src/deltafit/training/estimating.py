"""From a trial to what whole runs take: each part of their time, and their memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltafit.adapters.activations import VALUE_BYTES
from deltafit.adapters.inspection import MOMENTS
from deltafit.training.config import RunConfig
from deltafit.training.constant import constant_batches
from deltafit.training.cost_law import Span, Work, added, exactly, total
from deltafit.training.loop import SECONDS_BETWEEN_CHECKPOINTS
from deltafit.training.trial import Trial
from deltafit.training.workload import (
    evaluation_passes,
    passes_work,
    work_of_epochs,
)

WRITTEN_PER_SECOND = 2e8
"""Bytes, taken for granted: nothing is written to find it out."""

BEFORE = "evaluation before"
"""The part that runs of one experiment have in common, where they start alike."""

_MOVING = ("activations", "temporaries", "holes")  # what batches and lengths decide of memory
_CORRECTED = (0.5, 2.0)  # how far what was foretold of that may be wrong


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take, or several that are trained jointly.

    Attributes:
        trainable: parameters that are trained, of the largest of joined runs.
        total: parameters that there are, those of the adapter included.
        memory: bytes that the process will hold at most while it trains; measured in the trial,
            or foretold from the model's structure where nothing was tried.
        foretold: bytes by part, foretold.
        parts: of the time, by name, in their order; without any where nothing was tried.
        epoch: one pass over the training rows, and its validation.
        timed: how many steps were.
        packed: whether training runs without padding.
        precision: of its products.
        problem: why nothing was tried.
    """

    trainable: int
    total: int
    memory: int
    foretold: dict[str, int]
    parts: dict[str, Span]
    epoch: Span
    timed: int
    packed: bool
    precision: str
    problem: str | None = None

    @property
    def training(self) -> Span:
        """What ``training_seconds`` of a run's costs will say."""
        return total(self.parts[name] for name in ("looking at texts", "frozen layers", "steps"))

    @property
    def whole(self) -> Span:
        """From loading the model to the proven adapter."""
        return total(self.parts.values())


def estimate_of(trial: Trial, configs: Sequence[RunConfig]) -> RunEstimate:
    """Return what runs take of which some steps were tried.

    Args:
        trial: of the run; of another batch size or a larger maximum length too, if its steps were
            cut to the lengths in question.
        configs: the run, or all that are trained jointly.
    """
    first = configs[0].settings
    lengths = {
        name: [min(length, first.max_length) for length in part]
        for name, part in trial.lengths.items()
    }
    memory = sum(trial.foretold.values()) if trial.peak is None else trial.peak
    parts = {} if trial.problem else _parts(trial, configs, lengths)
    validation = _evaluation(trial, lengths.get("validation", ()))
    of_all = Span() if trial.problem else trial.steps.of(_steps(trial, configs, lengths["train"]))
    count = max(config.settings.epochs for config in configs)
    return RunEstimate(
        trial.trainable, trial.total, memory, trial.foretold, parts,
        of_all.times(1 / count) + validation.times(len(configs)),
        trial.timed, trial.packed, trial.precision, trial.problem,
    )  # fmt: skip


def memory_of(trial: Trial, foretold: Mapping[str, int]) -> int:
    """Return the bytes of a run that differs from the tried one in its batch size or length.

    What they decide is foretold from the model's structure, and corrected as far as that was
    wrong for the run that was tried.

    Args:
        trial: the tried one.
        foretold: bytes by part of the other one.
    """
    if trial.peak is None:
        return sum(foretold.values())
    moving = sum(trial.foretold[name] for name in _MOVING)
    fixed = sum(trial.foretold.values()) - moving
    low, high = _CORRECTED
    # Beyond these it is another thing that was wrong, which batches and lengths do not change.
    scale = min(max((trial.peak - fixed) / moving, low), high) if moving else 1.0
    own = sum(foretold[name] for name in _MOVING)
    others = sum(foretold.values()) - own
    return round(trial.peak + (others - fixed) + scale * (own - moving))


def features_of(trial: Trial) -> Span:
    """Return what the frozen model's features of all texts take, which cheap baselines read."""
    return total(_evaluation(trial, part) for part in trial.lengths.values())


def _parts(
    trial: Trial, configs: Sequence[RunConfig], lengths: Mapping[str, Sequence[int]]
) -> dict[str, Span]:
    settings, runs = configs[0].settings, len(configs)
    judged = [n for n in lengths if n != "train" or settings.judge_training]
    evaluation = total(_evaluation(trial, lengths[name]) for name in judged)
    after = evaluation if judged else _evaluation(trial, lengths["train"])
    validations = [_validations(config, len(lengths["train"])) for config in configs]
    frozen = Span()
    if trial.freezing is not None:
        passes = constant_batches(lengths["train"], settings)
        frozen = trial.freezing.of(added(passes_work(passes, lengths["train"])))
    steps = trial.steps.of(_steps(trial, configs, lengths["train"]))
    saves = sum(validations) + runs * int(steps.seconds / SECONDS_BETWEEN_CHECKPOINTS)
    tensors = (1 + MOMENTS) * saves + sum(validations) + runs
    written = tensors * VALUE_BYTES * trial.trainable / WRITTEN_PER_SECOND
    return {
        "loading": exactly(trial.loading),
        BEFORE: evaluation.times(len({config.settings.seed for config in configs})),
        "looking at texts": exactly(trial.looking),
        "checks": exactly(trial.checking),
        "frozen layers": frozen,
        "steps": steps,
        "validation": _evaluation(trial, lengths.get("validation", ())).times(sum(validations)),
        "writing": exactly(written),
        "evaluation after": after.times(runs),
        "proof": exactly(trial.proving * runs),
    }


def _evaluation(trial: Trial, lengths: Sequence[int]) -> Span:
    if not lengths:
        return Span()
    return trial.evaluating.of(added(passes_work(evaluation_passes(lengths), lengths)))


def _epochs(trial: Trial, config: RunConfig, lengths: Sequence[int]) -> list[Work]:
    return work_of_epochs(
        lengths, config.settings, packed=trial.packed, longer=config.method.added_tokens
    )


def _steps(trial: Trial, configs: Sequence[RunConfig], lengths: Sequence[int]) -> Work:
    """Return the work of all steps; those that joined runs take at a time count once."""
    each = [added(_epochs(trial, config, lengths)) for config in configs]
    _, tokens, squares = added(each)
    return max(count for count, _, _ in each), tokens, squares


def _validations(config: RunConfig, rows: int) -> int:
    """Return how many evaluations there are in a run that no patience ends."""
    settings = config.settings
    steps = math.ceil(rows / settings.rows_per_step)
    return math.ceil(settings.epochs * steps / (settings.evaluate_every or steps))
