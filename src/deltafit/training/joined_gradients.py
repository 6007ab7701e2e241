"""The gradients of one step of several runs, computed in common passes through their one model."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltafit.engine import mixed
from deltafit.tasks.classification import Classifier, batch_of, logits_of
from deltafit.training.constant import ConstantStates
from deltafit.training.gradients import summed_loss, weight_of
from deltafit.training.learner import Learner
from deltafit.training.passes import Part, cut_passes, join_passes

# What passes share is their cost apart from the tokens: one call of every layer, one reading of
# every weight. A pass of 16 texts of 256 tokens, the largest that the defaults make, has so little
# left of it that more would only take memory.
TOKENS_OF_A_PASS = 4096


class JoinedGradients:
    """Accumulates, for every run, the gradient of the mean loss over the rows of its own step.

    A row goes through its own run's adapter and head alone, and its loss is divided by the weight
    of its own run's step. So every run gets the gradient that `StepGradients` gives it alone.

    Args:
        model: the classifier's model as Accelerate wrapped it.
        classifier: how rows become batches.
        learners: the runs, by the names of their adapters on the model; all on the same rows.
        accelerator: devices and precision.
        constant: what frozen layers below those that any run trains give for the rows.

    Attributes:
        packed: whether the model runs without padding.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: Classifier,
        learners: Mapping[str, Learner],
        accelerator: Accelerator,
        constant: ConstantStates,
    ) -> None:
        self.model, self.classifier, self.learners = model, classifier, learners
        self.accelerator, self.constant, self.packed = accelerator, constant, False
        self.train = next(iter(learners.values())).train
        self._lengths = [len(row) for row in self.train.rows]

    def accumulate(self, steps: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Add each run's gradient to its parameters; return each run's mean loss.

        Args:
            steps: the rows of every run's step, by the name of its adapter.
        """
        weights = {
            name: weight_of(self.train, rows, self.learners[name].class_weights)
            for name, rows in steps.items()
        }
        parts: list[Part] = [
            (name, part) for name, rows in steps.items() for part in self._passes(name, rows)
        ]
        losses = dict.fromkeys(steps, 0.0)
        for group in join_passes(parts, self._lengths, TOKENS_OF_A_PASS, packed=self.packed):
            rows_of: dict[str, list[int]] = {}
            for name, rows in group:
                rows_of.setdefault(name, []).extend(rows)
            shares = self._backward(rows_of, weights)
            for name, share in shares.items():
                losses[name] += share
        return losses

    def _passes(self, name: str, rows: Sequence[int]) -> list[list[int]]:
        size = self.learners[name].settings.batch_size
        return cut_passes(rows, self._lengths, size, packed=self.packed)

    def _backward(
        self, rows_of: Mapping[str, list[int]], weights: Mapping[str, float]
    ) -> dict[str, float]:
        """Run one pass; return each run's share of its step's mean loss."""
        rows = [row for own in rows_of.values() for row in own]
        segments = [(name, len(own)) for name, own in rows_of.items()]
        batch = batch_of(self.classifier, [self.train.rows[row] for row in rows])
        # The backward pass inside: gradient checkpointing runs the forward pass again.
        with self.constant.fed(rows), mixed(self.classifier.model, segments):
            with self.accelerator.autocast():
                logits = logits_of(self.model, batch)
            losses: dict[str, Tensor] = {}
            for (name, own), part in zip(
                rows_of.items(), logits.split([count for _, count in segments]), strict=True
            ):
                learner = self.learners[name]
                smoothing = learner.settings.label_smoothing
                loss = summed_loss(part, self.train, own, learner.class_weights, smoothing)
                losses[name] = loss / weights[name]
            self.accelerator.backward(torch.stack(list(losses.values())).sum())
        return {name: float(loss.detach()) for name, loss in losses.items()}
