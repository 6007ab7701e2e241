"""Several runs trained at once on one shared base model, each as if it were trained alone."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from deltafit.adapters import activate, adapter_tensors, keyed_seed
from deltafit.data import across_lengths
from deltafit.engine import StateStores, check_mixing
from deltafit.errors import TrainingError, UsageError
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.training.accelerator import seed_generators
from deltafit.training.checkpoints import Checkpoint
from deltafit.training.constant import ConstantStates
from deltafit.training.course import Course, Examples
from deltafit.training.execution import fast_execution, release
from deltafit.training.gradients import enable_gradient_checkpointing
from deltafit.training.interruption import Interrupted, stop_requested
from deltafit.training.joined_gradients import JoinedGradients
from deltafit.training.learner import Learner
from deltafit.training.loop import SECONDS_BETWEEN_CHECKPOINTS
from deltafit.training.modes import TrainingModes
from deltafit.training.noting import Noting
from deltafit.training.progress import Labelled, Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.sharing import check_shared, decided_for_all
from deltafit.training.validation import plain_forward

# Kept with the checkpoints: whoever finishes such a run, its figures are to be read so.
_NOTE = (
    "trained jointly with others: its time is its share of the whole by rows, and its memory that "
    "of all of them"
)


@dataclass(frozen=True)
class JoinedRun:
    """One of the runs.

    Attributes:
        settings: its hyperparameters.
        learning_rate: its highest rate of everything but the head.
        folder: for its checkpoints.
        label: what the person knows it by.
    """

    settings: TrainingSettings
    learning_rate: float
    folder: Path
    label: str


class JoinedLoop:
    """Trains several adapters of one model, each by its own settings, in common passes.

    Every run takes the steps that it would take alone, in the same order: with its own rows, rates,
    optimiser, evaluations, patience and checkpoints. In float32 and without dropout its parameters
    come out as those of `TrainingLoop`, up to rounding. With dropout, other elements are dropped,
    with the same probability. A run that is finished or fails leaves, and the others go on.

    Args:
        classifier: its model carries an adapter for each run, under the run's name here.
        train: rows to learn from, the same for all.
        validation: rows that pick every run's best checkpoint; None keeps the last.
        runs: by the names of their adapters.
        reporter: told how the work goes.
        accelerator: devices and precision; of one process.
        states: of frozen layers, shared with other runs; see `ConstantStates`.
        checkpoint_every: seconds after which one is written, besides those of evaluations.

    Attributes:
        learners: of the runs, by name. Checkpoints name tensors as `TrainingLoop` does, so that
            either can go on with what the other began.

    Raises:
        UsageError: the runs cannot share passes, or one of them asks for what does not exist.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        validation: Examples | None,
        runs: Mapping[str, JoinedRun],
        *,
        reporter: Reporter,
        accelerator: Accelerator,
        states: StateStores | None = None,
        checkpoint_every: float = SECONDS_BETWEEN_CHECKPOINTS,
    ) -> None:
        check_shared([run.settings for run in runs.values()])
        if accelerator.num_processes > 1:
            raise UsageError(
                "Runs are trained jointly in one process; there are "
                f"{accelerator.num_processes}. Start one, or leave jointly out."
            )
        self.classifier, self.reporter, self.accelerator = classifier, reporter, accelerator
        model = classifier.model.to(accelerator.device)
        self.learners: dict[str, Learner] = {}
        for name, run in runs.items():
            activate(model, name)
            self.learners[name] = Learner(
                classifier, train, validation, run.settings,
                trainable=_trainable(model, name), learning_rate=run.learning_rate,
                folder=run.folder, accelerator=accelerator,
                reporter=Noting(Labelled(reporter, run.label), run.folder.parent),
            )  # fmt: skip
        self.settings = next(iter(runs.values())).settings
        if self.settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.model = accelerator.prepare(model)
        train = next(iter(self.learners.values())).train
        self.modes = TrainingModes(classifier, self.settings, train)
        self.constant = self._constant(runs, states)
        self.gradients = JoinedGradients(
            self.model, classifier, self.learners, accelerator, self.constant
        )
        self.checkpoint_every = checkpoint_every
        self._failures: dict[str, TrainingError] = {}

    def _constant(
        self, runs: Mapping[str, JoinedRun], states: StateStores | None
    ) -> ConstantStates:
        """Return what frozen layers give for all runs.

        Raises:
            UsageError: the runs differ in which layers those are, and so in what drops nothing.
        """
        first: ConstantStates | None = None
        seen: set[tuple[str, ...]] = set()
        for name, learner in self.learners.items():
            trained = tuple(learner.trainable)
            if trained in seen:
                continue  # another seed or rate, or another rank
            seen.add(trained)
            constant = ConstantStates(
                self.classifier, learner.train, trained,
                learner.settings, learner.folder, self.reporter, states,
            )  # fmt: skip
            first = first or constant
            if constant.blocks != first.blocks:
                raise UsageError(
                    f"{next(iter(runs.values())).label} and {runs[name].label} cannot be trained "
                    f"jointly: {len(first.blocks)} and {len(constant.blocks)} blocks lie below "
                    "what they train, and run without dropout. Train them one after another."
                )
        assert first is not None
        return first

    def run(self, checkpoints: Mapping[str, Checkpoint]) -> dict[str, TrainingError]:
        """Train every run to its end and put its best parameters back; return those that failed.

        Args:
            checkpoints: to go on from, of the runs that have one. They may be of different steps:
                each run goes on where it stood.

        Raises:
            UsageError: the model cannot run several adapters in one pass, or the runs were begun
                in ways that cannot be shared.
            Interrupted: the person asked to stop; a checkpoint of every run was written.
        """
        for name, checkpoint in checkpoints.items():
            learner = self.learners[name]
            learner.resume(checkpoint)
            if learner.course.failure is not None:
                self._failures[name] = TrainingError(learner.course.failure)
        live = self._live()
        if live:
            self._train(live)
        for name, learner in self.learners.items():
            if name not in self._failures:
                learner.put_best_back()
        release(self.classifier, self.settings, self.constant)
        return self._failures

    def _train(self, live: dict[str, Learner]) -> None:
        train = self.gradients.train
        shared = self._keep_constant(live)
        activate(self.classifier.model, next(iter(live)))  # whether it runs packed is checked on it
        fast = fast_execution(
            self.classifier, train, self.settings, shared, self.constant, self.reporter,
            self.accelerator,
        )  # fmt: skip
        with fast, stop_requested() as asked:
            self._check_mixing(list(live))
            self.gradients.packed = bool(shared.packed)
            for learner in live.values():
                learner.course.packed = shared.packed
                learner.course.first_tokens = shared.first_tokens
                learner.course.precision = shared.precision
                learner.course.attention_precision = shared.attention_precision
                learner.reporter.start("training", learner.total_steps, learner.course.step)
                if _NOTE not in learner.course.notes:
                    learner.course.notes.append(_NOTE)
            total = max(learner.total_steps for learner in live.values())
            self.reporter.start(f"training {len(live)} runs", total, _furthest(live))
            saved = time.monotonic()
            while live:
                self._step(live)
                due, stop = self._evaluate(live), asked()
                if stop or due or time.monotonic() - saved > self.checkpoint_every:
                    for name in live.keys() - self._failures.keys():
                        live[name].save()
                    saved = time.monotonic()
                live = self._live()
                if stop and live:
                    raise Interrupted(
                        f"Stopped after step {_furthest(live)} of {total}; a checkpoint of every "
                        "run was written."
                    )

    def _live(self) -> dict[str, Learner]:
        return {
            name: learner
            for name, learner in self.learners.items()
            if name not in self._failures and not learner.finished
        }

    def _check_mixing(self, names: Sequence[str]) -> None:
        """Raise a UsageError unless the first two runs give the same in one pass as alone."""
        if len(names) < 2:
            return
        rows = across_lengths(self.gradients.train.rows, 2)
        with plain_forward(self.classifier.model):
            batch = batch_of(self.classifier, rows)
            reason = check_mixing(self.classifier.model, batch, (names[0], names[1]))
        if reason is not None:
            raise UsageError(f"{reason} Train the runs one after another, without --jointly.")

    def _keep_constant(self, live: Mapping[str, Learner]) -> Course:
        """Compute what frozen layers give, once for all; return what was decided for all."""
        courses = [learner.course for learner in live.values()]
        shared = decided_for_all(courses)
        self.constant.keep(shared)
        for course in courses:
            course.kept = shared.kept
            course.seconds += shared.seconds / len(courses)
        return shared

    def _step(self, live: Mapping[str, Learner]) -> None:
        """Apply one optimiser step of every run, and count it."""
        began = time.perf_counter()
        steps = {name: learner.begin_step() for name, learner in live.items()}
        self.modes.train(self.model)
        for learner in live.values():
            for parameter in learner.trainable.values():
                parameter.requires_grad_(True)  # activating one adapter freezes the others
        # As in a run alone: by where the runs stand, not carried on.
        places = [learner.course.step for learner in live.values()]
        key = f"steps {places} of joined runs"
        seed_generators(keyed_seed(self.settings.seed, key), self.accelerator.device)
        losses = self.gradients.accumulate(steps)
        seconds, total = time.perf_counter() - began, sum(map(len, steps.values()))
        for name, rows in steps.items():
            try:
                live[name].apply(rows, losses[name], seconds * len(rows) / total)
            except TrainingError as error:
                self._leave(name, error)
        courses = [learner.course for learner in live.values()]
        spent = sum(course.seconds for course in courses)
        speed = sum(course.examples for course in courses) / spent if spent else None
        self.reporter.step(_furthest(live), sum(losses.values()) / len(losses), speed)

    def _evaluate(self, live: Mapping[str, Learner]) -> bool:
        """Evaluate the runs whose time it is; return whether there were any."""
        due = [n for n, lrn in live.items() if n not in self._failures and lrn.evaluation_due]
        for name in due:
            activate(self.classifier.model, name)
            try:
                live[name].evaluate()
            except TrainingError as error:
                self._leave(name, error)
        return bool(due)

    def _leave(self, name: str, error: TrainingError) -> None:
        self._failures[name] = error
        learner = self.learners[name]
        learner.optimiser.zero_grad()
        # So that it stays out when the others are resumed, who then go on as they would have.
        learner.course.failure = error.what
        learner.save()
        learner.reporter.say(error.what)


def _furthest(learners: Mapping[str, Learner]) -> int:
    return max(learner.course.step for learner in learners.values())


def _trainable(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Return what the active adapter trains, by the names of a run alone, in the same order."""
    names = {
        f"{tensor}.{adapter}": f"{tensor}.default" for tensor in adapter_tensors(model, adapter)
    }
    return {names.get(n, n): p for n, p in model.named_parameters() if p.requires_grad}
