"""The runs of an experiment in TensorBoard, W&B and MLflow: one group, one run a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltafit.errors import TrainingError
from deltafit.experiments.arms import Experiment
from deltafit.experiments.running import Outcome
from deltafit.training.config import RunConfig
from deltafit.training.progress import Reporter
from deltafit.training.tracking import Tracking, is_installed, offline_sentence, track_finished


@dataclass(frozen=True)
class TrackedRuns:
    """What follows the runs of an experiment.

    Attributes:
        trackers: their names.
        folder: for what they write on this machine.
        group: the experiment's name.
        names: of the runs that have one besides their method and seed.
    """

    trackers: tuple[str, ...]
    folder: Path
    group: str
    names: Mapping[RunConfig, str]

    def of(self, config: RunConfig) -> Tracking:
        """Return what follows one of the runs."""
        name = self.names.get(config, config.label)
        return Tracking(self.trackers, self.folder, name, self.group)

    def complete(self, outcomes: Mapping[RunConfig, Outcome], reporter: Reporter) -> None:
        """Tell the trackers of finished runs that they did not follow to their end.

        Those were trained jointly, or finished before somebody asked for trackers, or the tracker
        failed. One that fails now is not tried for the runs that follow.
        """
        left = self.trackers
        for config, outcome in outcomes.items():
            if not isinstance(outcome, TrainingError):
                tracking = replace(self.of(config), trackers=left)
                failed = track_finished(tracking, config.to_dict(), outcome, reporter)
                left = tuple(name for name in left if name not in failed)
        missed = ", ".join(name for name in self.trackers if name not in left)
        if missed:
            reporter.say(f"What {missed} missed it is told when the same runs are asked for again.")

    def tell(self, asked: Sequence[str], reporter: Reporter) -> None:
        """Tell what of the trackers that were asked for is not as it is meant."""
        for name in asked:
            if name not in self.trackers:
                reporter.say(
                    f"{name} is not installed, so nothing is logged to it: pip install "
                    f"'deltafit[{name}]'."
                )
        sentence = offline_sentence(self.trackers, self.folder)
        if sentence is not None:
            reporter.say(sentence)


def tracked_runs(trackers: Sequence[str], folder: Path, experiment: Experiment) -> TrackedRuns:
    """Return what follows the runs of an experiment.

    Args:
        trackers: their names; those that are not installed are left out.
        folder: of the experiment's report, which the group is called by.
        experiment: the runs.
    """
    installed = tuple(filter(is_installed, trackers))
    return TrackedRuns(installed, folder / "logs", folder.name, experiment.names())
