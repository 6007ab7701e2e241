"""Which modules train and which only evaluate: where the pretrained model drops nothing."""

from contextlib import nullcontext

import torch
from torch import nn

from deltafit.adapters import disabled, is_adapted, model_adapters
from deltafit.adapters.structure import is_matrix, layer_kind, repeated_blocks
from deltafit.data import across_lengths
from deltafit.errors import UsageError
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.tasks.inference import encoder_of
from deltafit.training.course import Examples
from deltafit.training.settings import TrainingSettings


class TrainingModes:
    """Puts a classifier into training mode, its pretrained part as ``base_dropout`` says.

    Dropout that is off is evaluation mode, for modules and for what models call as a function.
    Adapted layers go on training, for their adapters' own dropout, and so does the head.

    Args:
        classifier: adapted, on its device, with gradient checkpointing where it is asked for.
        settings: base dropout and gradient checkpointing.
        train: the rows to learn from.

    Raises:
        UsageError: blocks that are recomputed drop in code of their own.
    """

    def __init__(self, classifier: Classifier, settings: TrainingSettings, train: Examples) -> None:
        self._model, self._evaluating = classifier.model, list[nn.Module]()
        if settings.base_dropout == "configured":
            return
        names = [name for stack in repeated_blocks(classifier.model) for name in stack.blocks]
        blocks = {classifier.model.get_submodule(name) for name in names}
        self._evaluating = [
            module
            for module in encoder_of(classifier.model).modules()
            # An adapted attention has nothing of the adapter's that drops.
            if not (is_adapted(module) and layer_kind(module))
            and not is_matrix(module)  # drops nothing, and may be reduced while it trains
            # transformers recomputes blocks that train, and no others.
            and not (settings.gradient_checkpointing and module in blocks)
        ]
        if settings.gradient_checkpointing:
            self._check(classifier, train)

    def train(self, model: nn.Module) -> None:
        """Put the model, as Accelerate wrapped it, into training mode."""
        first = next(iter(self._evaluating), None)
        if model.training and (first is None or not first.training):
            return  # walking through all modules takes longer than a step of a head
        model.train()
        for module in self._evaluating:
            module.training = False

    def _check(self, classifier: Classifier, train: Examples) -> None:
        self.train(self._model)
        batch = batch_of(classifier, across_lengths(train.rows, 2))
        states = []
        # An adapter's own dropout is not meant. Without deltas there is none, and in full
        # fine-tuning no base to return to.
        state = model_adapters(self._model)
        deltas = state.active is not None and state.adapters[state.active].targets
        base = disabled(self._model) if deltas else nullcontext()
        with torch.no_grad(), torch.random.fork_rng(), base:
            for seed in range(2):
                torch.manual_seed(seed)
                states.append(encoder_of(self._model)(**batch).last_hidden_state)
        if not torch.equal(*states):
            raise UsageError(
                "The blocks of this model drop in code of their own, which goes on wherever they "
                "are recomputed. Leave out --base-dropout off or --gradient-checkpointing."
            )
