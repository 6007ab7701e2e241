"""A few steps of a run, timed: what it will take, before it is done.

Nothing of a trial stays: it writes nothing, and its model is its own. It is called in a process of
its own (`in_own_process`): its peak of memory is measured, and what it leaves in a process would
be memory of others.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator

from deltafit.adapters import activate
from deltafit.data import Splits
from deltafit.prediction.canaries import canary_logits, readable_sentences
from deltafit.prediction.fingerprint import fingerprint
from deltafit.tasks.execution import unpadded
from deltafit.tasks.inference import compute_logits
from deltafit.training.accelerator import processes
from deltafit.training.config import RunConfig
from deltafit.training.constant import FROZEN_LAYERS, constant_batches
from deltafit.training.cost_law import CostLaw
from deltafit.training.costs import expected_memory, may_pack, parameter_counts
from deltafit.training.course import Course
from deltafit.training.execution import release
from deltafit.training.features import FrozenFeatures
from deltafit.training.joined import JoinedLoop, JoinedRun
from deltafit.training.joined_run import adapt_runs, check_joined, heads_of
from deltafit.training.loop import TrainingLoop
from deltafit.training.memory import PeakMemory, give_back_memory, measured_memory
from deltafit.training.precision import planned_precision
from deltafit.training.preparation import Prepared, load_for, prepare
from deltafit.training.progress import Silent
from deltafit.training.run import adapt_run, with_new_head
from deltafit.training.settings import TrainingSettings
from deltafit.training.train import load_data
from deltafit.training.trial_steps import STILL, Arranged, Clock, arranged, started
from deltafit.training.validation import plain_forward
from deltafit.training.workload import evaluation_passes, in_strata, passes_work

_PASSES = 5  # of an evaluation that are timed
_FEW = 2  # passes of which none is left out to warm up
_NOTHING = CostLaw((0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Trial:
    """What a trial found out of a run, or of several that are trained jointly.

    Attributes:
        lengths: tokens of each text by part, cut as the run cuts them.
        trainable: parameters that each run trains, most of all.
        total: parameters that there are, those of the adapter included.
        foretold: bytes by part; see ``expected_memory``. Of joined runs, gradients and what the
            optimiser keeps are those of all.
        variants: the same with other settings that were asked for.
        peak: bytes that the process held at most in the trial, and would in the whole training;
            None where nothing was tried.
        packed: whether training runs without padding.
        precision: of its products.
        loading: seconds until the model is loaded and the texts are tokens.
        looking: seconds of looking at texts before the start.
        checking: seconds of checks before the first step.
        proving: seconds of loading and proving the adapter when it is saved.
        steps: the law of optimiser steps; of joined runs, of a step of each of them.
        timed: how many were timed.
        evaluating: the law of an evaluation's passes.
        freezing: the law of the passes that compute, once, what frozen layers give; None where
            that is not done.
        problem: why nothing was tried; the laws mean nothing then.
    """

    lengths: Mapping[str, Sequence[int]]
    trainable: int
    total: int
    foretold: dict[str, int]
    variants: tuple[dict[str, int], ...] = ()
    peak: int | None = None
    packed: bool = False
    precision: str = "float32"
    loading: float = 0.0
    looking: float = 0.0
    checking: float = 0.0
    proving: float = 0.0
    steps: CostLaw = _NOTHING
    timed: int = 0
    evaluating: CostLaw = _NOTHING
    freezing: CostLaw | None = None
    problem: str | None = None


def try_run(config: RunConfig, variants: Sequence[TrainingSettings] = ()) -> Trial:
    """Try some steps of a run in this process; they are timed, and its memory is measured.

    Args:
        config: the run.
        variants: settings with another batch size or a smaller maximum length, whose memory is
            foretold too; steps are then cut to all their lengths in turn, for a law of time of all.

    Raises:
        DeltafitError: the texts or the model cannot be used, or training fails.
    """
    config, run, splits, features, loading = _prepared(config)
    # As a run does before training: what it finds out and its memory stay.
    _evaluate(run)
    looking = adapt_run(config, run, Silent())
    rows = run.examples["train"].rows
    foretold = expected_memory(run.classifier, config, rows)
    others = tuple(
        expected_memory(
            run.classifier, replace(config, settings=each),
            [row[: each.max_length] for row in rows],
        )
        for each in variants
    )  # fmt: skip
    trial = Trial(
        _lengths(run), *parameter_counts(run.classifier.model), foretold, others,
        loading=loading, looking=looking,
    )  # fmt: skip
    if (problem := too_large(foretold)) is not None:
        return replace(trial, problem=problem)
    cuts = sorted({each.max_length for each in (*variants, config.settings)})
    plan = _arranged(config, run, cuts)

    def begin(clock: Clock, accelerator: Accelerator, folder: Path) -> TrainingLoop:
        return TrainingLoop(
            run.classifier, plan.examples, None, plan.settings,
            learning_rate=STILL, folder=folder, reporter=clock, accelerator=accelerator,
            checkpoint_every=math.inf,
        )  # fmt: skip

    found = _timed(trial, [config], run, plan, begin)
    return replace(found, proving=_proving(config, run, splits, features))


def try_jointly(configs: Sequence[RunConfig]) -> Trial:
    """Try some steps of runs that are trained jointly; see ``try_run``.

    Raises:
        DeltafitError: as ``try_run``.
        UsageError: the runs cannot be trained jointly.
    """
    check_joined(configs)
    configs = [with_new_head(config) for config in configs]
    methods = [config.method for config in configs]
    first, run, splits, features, loading = _prepared(configs[0], methods[1:])
    _evaluate(run)
    names = [f"run{number}" for number in range(len(configs))]
    heads = heads_of(configs, run, splits, features)
    looking = sum(adapt_runs(configs, names, heads, run, Silent()).values())
    counts = []
    for name in names:
        activate(run.classifier.model, name)
        counts.append(parameter_counts(run.classifier.model))
    foretold = expected_memory(run.classifier, first, run.examples["train"].rows)
    for part in ("gradients", "optimiser"):  # so far those of the last run
        foretold[part] = foretold[part] * sum(own for own, _ in counts) // counts[-1][0]
    trial = Trial(_lengths(run), *max(counts), foretold, loading=loading, looking=looking)
    if (problem := too_large(foretold)) is not None:
        return replace(trial, problem=problem)
    plan = _arranged(first, run, [first.settings.max_length])

    def begin(clock: Clock, accelerator: Accelerator, folder: Path) -> JoinedLoop:
        runs = {
            name: JoinedRun(
                replace(plan.settings, seed=config.settings.seed), STILL, folder / name,
                config.label,
            )
            for name, config in zip(names, configs, strict=True)
        }  # fmt: skip
        return JoinedLoop(
            run.classifier, plan.examples, None, runs, reporter=clock, accelerator=accelerator,
            checkpoint_every=math.inf,
        )  # fmt: skip

    found = _timed(trial, configs, run, plan, begin)
    return replace(found, proving=_proving(first, run, splits, features))


def too_large(foretold: Mapping[str, int]) -> str | None:
    """Return why a run had better not be tried here: it needs more memory than is free."""
    needed = sum(foretold.values()) - foretold["process_before"]
    free = psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"It is expected to need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free "
        "here, so no step was tried."
    )


def _prepared(
    config: RunConfig, others: Sequence[Any] = ()
) -> tuple[RunConfig, Prepared, Splits, FrozenFeatures, float]:
    """Return a run made ready, its head new; and the seconds that took."""
    give_back_memory()
    began, reporter = time.perf_counter(), Silent()
    config, splits = with_new_head(config), load_data(config.data)
    features = FrozenFeatures(config.model, splits, config.settings.max_length, reporter)
    run = prepare(config, splits, features, reporter, others=others)
    run.classifier.model.to(processes().device)  # where a run evaluates it first
    return config, run, splits, features, time.perf_counter() - began


def _lengths(run: Prepared) -> dict[str, list[int]]:
    return {name: [len(row) for row in part.rows] for name, part in run.examples.items()}


def _arranged(config: RunConfig, run: Prepared, cuts: Sequence[int]) -> Arranged:
    model, settings, train = run.classifier.model, config.settings, run.examples["train"]
    # In half precision kernels are compiled for every new shape, once a run.
    twice = planned_precision(model, settings.precision) != "float32"
    packed = may_pack(model, settings)
    return arranged(train, settings, cuts, packed=packed, twice=twice)


def _timed(
    trial: Trial,
    configs: Sequence[RunConfig],
    run: Prepared,
    plan: Arranged,
    begin: Callable[[Clock, Accelerator, Path], TrainingLoop | JoinedLoop],
) -> Trial:
    """Return a trial with what the first steps of a loop took, and an evaluation behind them."""
    clock, first = Clock(plan.unmeasured, plan.wanted), configs[0]
    with started(first) as (accelerator, folder), measured_memory() as peak:
        began = time.perf_counter()
        loop = begin(clock, accelerator, folder)
        with clock.ending():
            _ = loop.run({}) if isinstance(loop, JoinedLoop) else loop.run()
        checking = clock.began["training"] - began - sum(clock.seconds.get(FROZEN_LAYERS, ()))
        course = loop.course if isinstance(loop, TrainingLoop) else _first_course(loop)
        evaluating = _evaluate(run)
        release(run.classifier, plan.settings, loop.constant)
    packed = bool(course.packed) or (loop.constant.whole and bool(course.kept))
    seeds, longer = [config.settings.seed for config in configs], first.method.added_tokens
    steps, count = plan.law(clock, plan.works(seeds, packed=packed, longer=longer))
    freezing = None
    if course.kept:
        passes = passes_work(constant_batches(plan.lengths, plan.settings), plan.lengths)
        times, warm_up = clock.seconds[FROZEN_LAYERS], int(len(passes) > _FEW)
        freezing = CostLaw.fitted(passes[warm_up:], times[warm_up:])
    return replace(
        trial, peak=_whole_peak(peak, trial, plan, course), packed=packed,
        precision=course.precision or "float32", checking=checking, steps=steps, timed=count,
        evaluating=evaluating, freezing=freezing,
    )  # fmt: skip


def _first_course(loop: JoinedLoop) -> Course:
    """Return what was decided for the first of joined runs, whose adapter is then active."""
    name, learner = next(iter(loop.learners.items()))
    activate(loop.classifier.model, name)
    return learner.course


def _whole_peak(peak: PeakMemory, trial: Trial, plan: Arranged, course: Course) -> int:
    """Return the peak of the whole run: it keeps the states of all rows, where it keeps any."""
    rest = 1 - sum(plan.lengths) / sum(trial.lengths["train"]) if course.kept else 0
    return peak.process + round(rest * trial.foretold["constant"])


def _evaluate(run: Prepared) -> CostLaw:
    """Time some passes over the rows that a run judges; a first one is to warm up."""
    judged = [name for name in run.examples if name != "train"] or ["train"]
    every = [row for name in judged for row in run.examples[name].rows]
    lengths = [len(row) for row in every]
    passes = evaluation_passes(lengths)
    # The longest texts make the peak of memory.
    chosen = [passes[0], *(passes[index] for index in in_strata(range(len(passes)), _PASSES))]
    seconds = []
    with plain_forward(run.classifier.model), unpadded(run.classifier, every, passes):
        for rows in chosen:
            own, began = [every[row] for row in rows], time.perf_counter()
            compute_logits(run.classifier, own)
            seconds.append(time.perf_counter() - began)
    return CostLaw.fitted(passes_work(chosen[1:], lengths), seconds[1:])


def _proving(config: RunConfig, run: Prepared, splits: Splits, features: FrozenFeatures) -> float:
    """Return the seconds of what a run does when it has saved its adapter, but for the writing."""
    classifier, began = run.classifier, time.perf_counter()
    loaded = load_for(config, splits, features)
    fingerprint(loaded.model, loaded.head_parameters)
    for _ in range(2):  # when it is saved, and when it is loaded
        canary_logits(classifier, readable_sentences(classifier.tokenizer), run.max_length)
    return time.perf_counter() - began
