"""What the doctor asks of the hyperparameters: whether a run of this length can follow them."""

import math
from collections.abc import Iterator

from deltafit.experiments.findings import Case, Check, Finding, listed
from deltafit.methods import AdaLoRA
from deltafit.methods.values import defaults
from deltafit.training.config import RunConfig
from deltafit.training.settings import TrainingSettings
from deltafit.training.validation import NOTHING_TO_WAIT_FOR

_FAR = 10  # times above or below a method's default rate
_FEW_STEPS = 20
_LONG_WARMUP = 0.5


def learning_rate(case: Case) -> Iterator[Finding]:
    """Rates far from the one that a method is known to learn well with.

    An adapter at full fine-tuning's usual 2e-5 hardly moves: "LoRA four to six points low".
    """
    seen: dict[str, tuple[int, list[str]]] = {}
    for row, config in enumerate(case.configs):
        if "learning_rate" in case.searched(row):
            continue  # it is where a search begins
        rate, usual = config.learning_rate, config.method.default_learning_rate
        name = config.method.command_line_name
        # Rounded: 5e-5 is a tenth of 5e-4, whatever its last bit says.
        below, above = round(usual / rate, 6), round(rate / usual, 6)
        if max(below, above) <= _FAR:
            continue
        where, follows = (
            (f"{below:.3g} times below", "it hardly moves so, and seems worse than it is")
            if below > above
            else (f"{above:.3g} times above", "it may diverge, or forget what the model knows")
        )
        sentence = (
            f"{name} trains at a rate of {_written(rate)}, {where} its default of "
            f"{_written(usual)}; {follows}."
        )
        seen.setdefault(f"{case.entries[row]} {sentence}", (row, []))[1].append(case.arms[row].name)
    for key, (row, names) in seen.items():
        usual = case.configs[row].method.default_learning_rate
        remedy = case.flag(row, "learning_rate", _written(usual), own=True)
        yield Finding("warning", "learning rate", key.partition(" ")[2], remedy, listed(names))


def few_steps(case: Case) -> Iterator[Finding]:
    """Runs of so few steps that nothing is learned."""
    for row, steps, settings in _lengths(case):
        if steps < _FEW_STEPS:
            epochs = math.ceil(_FEW_STEPS / (steps // settings.epochs))
            remedies = [case.flag(row, "epochs", epochs)]
            if (batch := _batch_for_steps(case, settings)) is not None:
                remedies.append(case.flag(row, "batch_size", batch))
            yield Finding(
                "warning",
                "few steps",
                f"{_whose(case, row)} makes {steps} optimiser steps in all, fewer than "
                f"{_FEW_STEPS}: that is too few to learn from.",
                " or ".join(remedies),
            )


def _batch_for_steps(case: Case, settings: TrainingSettings) -> int | None:
    """Return the batch size with which there are steps enough; None if there is none."""
    in_epoch = max(2, math.ceil(_FEW_STEPS / settings.epochs))
    return (len(case.splits.train) - 1) // (in_epoch - 1) // settings.accumulation or None


def large_step(case: Case) -> Iterator[Finding]:
    """Steps that take more rows than there are."""
    rows = len(case.splits.train)
    for row, _, settings in _lengths(case):
        wanted = settings.rows_per_step
        if wanted > rows:
            yield Finding(
                "note",
                "batch",
                f"A step of {wanted} rows (batch_size × accumulation) takes all {rows} training "
                "rows at once, so that an epoch is one step.",
                " ".join(
                    [
                        case.flag(row, "batch_size", max(1, rows // 8 // settings.accumulation)),
                        *[case.flag(row, "accumulation", 1)] * (settings.accumulation > rows),
                    ]
                ),
            )


def evaluations(case: Case) -> Iterator[Finding]:
    """Evaluations, and patience with them, that come after the run's end."""
    for row, steps, settings in _lengths(case):
        every = settings.evaluate_every
        if every is not None and every >= steps:
            yield Finding(
                "warning",
                "evaluations",
                f"{_whose(case, row)} is evaluated every {every} steps and has {steps}: it is "
                "evaluated once, at its end, so that no checkpoint is chosen.",
                case.flag(row, "evaluate_every", "null") + " (after each epoch)",
            )
        if settings.patience is None:
            continue
        if case.splits.validation is None:
            yield Finding(
                "error",
                "patience",
                NOTHING_TO_WAIT_FOR,
                f"{case.flag(row, 'patience', 'null')} or {case.change('data.validation', '0.1')}",
            )
            continue
        count = math.ceil(steps / (every or steps // settings.epochs))
        if settings.patience >= count - 1:  # the first one is the best so far
            yield Finding(
                "warning",
                "patience",
                f"{_whose(case, row)} is evaluated {count} times, and a patience of "
                f"{settings.patience} cannot end it before.",
                case.flag(row, "patience", max(1, count // 3) if count > 2 else "null"),
            )


def warmup(case: Case) -> Iterator[Finding]:
    """Rates that rise for most of the run."""
    for row, steps, settings in _lengths(case):
        if settings.warmup >= _LONG_WARMUP:
            yield Finding(
                "warning",
                "warm-up",
                f"{_whose(case, row)} raises its rate for {math.ceil(settings.warmup * steps)} of "
                f"its {steps} steps (warmup {settings.warmup:g}), and hardly trains at its height.",
                case.flag(row, "warmup", TrainingSettings().warmup),
            )


def allocation(case: Case) -> Iterator[Finding]:
    """AdaLoRA's choices of rank, where a run is too short for more than the last."""
    for row, config in enumerate(case.configs):
        method, steps = config.method, _steps(config, case)
        if not isinstance(method, AdaLoRA) or method.rank == method.initial_rank:
            continue
        between = _between(method, steps)
        if between <= method.interval:
            yield Finding(
                "warning",
                "ranks",
                f"{_whose(case, row)} has {between} steps between its warm-up and its last choice "
                f"of ranks, and chooses every {method.interval}: all ranks go at once.",
                " or ".join(_more_choices(case, row, method, between)),
            )


def _between(method: AdaLoRA, steps: int) -> int:
    """Return how many steps there are in which ranks may be chosen."""
    return round((1 - method.final) * steps) - round(method.warmup * steps)


def _more_choices(case: Case, row: int, method: AdaLoRA, between: int) -> Iterator[str]:
    """Yield flags with which AdaLoRA chooses more than once."""
    share = 1 - method.final - method.warmup
    if between > 1:
        yield case.method(row, interval=1)
    if share > 0:
        in_epoch = _steps(case.configs[row], case) // case.configs[row].settings.epochs
        # Two more, since both ends are rounded.
        yield case.flag(row, "epochs", math.ceil((method.interval + 2) / share / in_epoch))
    else:
        usual = defaults(AdaLoRA)
        yield case.method(row, interval=1, warmup=usual["warmup"], final=usual["final"])


def _lengths(case: Case) -> Iterator[tuple[int, int, TrainingSettings]]:
    """Yield a row, its steps and settings for every different schedule."""
    seen = set()
    for row, config in enumerate(case.configs):
        if _schedule(config) not in seen:
            seen.add(_schedule(config))
            yield row, _steps(config, case), config.settings


def _schedule(config: RunConfig) -> tuple[object, ...]:
    """Return what decides when a run does what."""
    settings = config.settings
    return (
        *(settings.epochs, settings.batch_size, settings.accumulation, settings.warmup),
        *(settings.evaluate_every, settings.patience),
    )


def _steps(config: RunConfig, case: Case) -> int:
    """Return the optimiser steps of a run."""
    settings = config.settings
    return settings.epochs * math.ceil(len(case.splits.train) / settings.rows_per_step)


def _whose(case: Case, row: int) -> str:
    """Return whose settings they are: every row's, or those like this one's."""
    one = _schedule(case.configs[row])
    if all(_schedule(config) == one for config in case.configs):
        return "Each run" if len(case.configs) > 1 else "The run"
    return f"The row {case.arms[row].name!r}"


def _written(rate: float) -> str:
    """Return 0.0005 as "5e-4"."""
    return f"{rate:.3g}" if 0.01 <= rate < 1000 else _short(f"{rate:.2e}")


def _short(text: str) -> str:
    digits, _, power = text.partition("e")
    return f"{float(digits):g}e{int(power)}"


SETTINGS_CHECKS: tuple[Check, ...] = (
    *(learning_rate, few_steps, large_step, evaluations, warmup, allocation),
)
