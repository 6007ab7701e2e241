"""The same runs alone and jointly, on tiny models.

Import as ``from tests.training.joined_runs import JOINED, alone, jointly``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from deltafit.adapters import adapt, adapter_tensors
from deltafit.data import resolve_model
from deltafit.engine import StateStores
from deltafit.methods import LoRA, Method
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier
from deltafit.training.checkpoints import Checkpoint
from deltafit.training.course import Course, Examples
from deltafit.training.joined import JoinedLoop, JoinedRun
from deltafit.training.progress import Reporter, Silent
from deltafit.training.settings import TrainingSettings
from tests.training.tiny_runs import LABELS, adapted, loop_on, tiny_examples

Values = dict[str, torch.Tensor]
RANK_2 = LoRA(rank=2)


@dataclass(frozen=True)
class Plan:
    """A run of a test."""

    settings: TrainingSettings
    method: Method = RANK_2
    rate: float = 1e-2


def values_of(classifier: Classifier, name: str = "default") -> Values:
    """Copies of an adapter's tensors."""
    tensors = adapter_tensors(classifier.model, name)
    return {tensor: value.detach().clone() for tensor, value in tensors.items()}


def alone(
    model: str,
    folder: Path,
    plan: Plan,
    *,
    head: str = "architecture",
    validation: Examples | None = None,
) -> tuple[Values, Course]:
    """Train one run by itself."""
    classifier = adapted(model, plan.method, head=head, seed=plan.settings.seed)
    loop = loop_on(
        classifier, folder, plan.settings, validation=validation, learning_rate=plan.rate
    )
    course = loop.run()
    return values_of(classifier), course


def joined_loop(
    model: str,
    folder: Path,
    plans: Mapping[str, Plan],
    *,
    head: str = "architecture",
    validation: Examples | None = None,
    reporter: Reporter | None = None,
    states: StateStores | None = None,
) -> JoinedLoop:
    """A loop of several runs on one model."""
    classifiers = {
        plan.settings.seed: load_classifier(
            resolve_model(model),
            LABELS,
            HeadSettings(head),
            seed=plan.settings.seed,  # type: ignore[arg-type]  # tests give strings
        )
        for plan in plans.values()
    }
    shared = next(iter(classifiers.values()))
    starts = {
        seed: {n: each.model.get_parameter(n).detach().clone() for n in each.head_parameters}
        for seed, each in classifiers.items()
    }
    for name, plan in plans.items():
        seed = plan.settings.seed
        adapt(
            shared.model, plan.method,
            name=name, seed=seed, head=shared.head_parameters, initial=starts[seed],
        )  # fmt: skip
    runs = {
        name: JoinedRun(plan.settings, plan.rate, folder / name / "checkpoints", name)
        for name, plan in plans.items()
    }
    return JoinedLoop(
        shared, tiny_examples(), validation, runs,
        reporter=reporter or Silent(), accelerator=Accelerator(), states=states,
    )  # fmt: skip


def trained(
    loop: JoinedLoop, checkpoints: Mapping[str, Checkpoint] | None = None
) -> dict[str, Values]:
    """Train to the end; return the tensors of the runs that did not fail."""
    failures = loop.run(checkpoints or {})
    return {n: values_of(loop.classifier, n) for n in loop.learners if n not in failures}
