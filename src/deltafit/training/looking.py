"""Looking at some of the training texts before the start, for methods that need to know of them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deltafit.adapters import (
    activate,
    adapt,
    check_fits,
    disabled,
    layer_state,
    model_adapters,
    remove_adapter,
)
from deltafit.adapters.statistics import Statistics, input_moments
from deltafit.data import epoch_order
from deltafit.engine import evaluating
from deltafit.methods import DeltaMethod, Method, Sparse
from deltafit.tasks.classification import Classifier, batch_of, logits_of
from deltafit.training.course import Examples
from deltafit.training.gradients import loss_weights, summed_loss
from deltafit.training.progress import Counted, Reporter
from deltafit.training.settings import TrainingSettings

TEXTS = 256
"""How many texts are looked at, at most: the first of the first epoch."""

_LOOKING = "looking"  # the adapter that the weights' gradients are read from


def look_at_texts(
    classifier: Classifier,
    train: Examples,
    method: Method,
    settings: TrainingSettings,
    reporter: Reporter,
    *,
    head: Mapping[str, Tensor] | None = None,
    rounding: Statistics | None = None,
) -> Statistics:
    """Return what the method needs to know of its layers; nothing for one that needs nothing.

    Each text runs by itself, without padding, in evaluation mode and in float32, through the base
    alone. What is found depends on the base, the rows, the head and the settings only.

    Args:
        classifier: its model may carry other adapters; it is left as it was.
        train: the training rows.
        method: what will be trained.
        settings: the seed of the rows' order; class weights and smoothing of the loss.
        reporter: told how it goes.
        head: values of the head's parameters, where they are not the model's own.
        rounding: what quantising took from the base's weights; texts say nothing of it.

    Raises:
        DeltafitError: the method does not fit the model.
    """
    if not isinstance(method, DeltaMethod) or (wanted := method.statistic()) is None:
        return {}
    if wanted == "rounding":
        return rounding or {}
    rows = epoch_order(len(train), settings.seed, 0)[:TEXTS]
    advance = Counted(reporter, "looking at texts", len(rows))
    if wanted == "inputs":
        return _input_moments(classifier, train, rows, method, advance)
    weights = loss_weights(train, settings, len(classifier.label_names))

    def loss_of(row: int) -> Tensor:
        logits = logits_of(classifier.model, batch_of(classifier, [train.rows[row]]))
        own = weights.to(logits.device)
        return summed_loss(logits, train, [row], own, settings.label_smoothing)

    return _gradients(classifier, rows, method, loss_of, head, advance)


def _input_moments(
    classifier: Classifier,
    train: Examples,
    rows: Sequence[int],
    method: DeltaMethod,
    advance: Callable[[int], None],
) -> Statistics:
    model = classifier.model
    targets, _ = check_fits(model, method, head=classifier.head_parameters)
    with (
        disabled(model),
        evaluating(model),
        torch.no_grad(),
        input_moments(model, targets) as statistics,
    ):
        for row in rows:
            logits_of(model, batch_of(classifier, [train.rows[row]]))
            advance(1)
    return statistics


def _gradients(
    classifier: Classifier,
    rows: Sequence[int],
    method: DeltaMethod,
    loss_of: Callable[[int], Tensor],
    head: Mapping[str, Tensor] | None,
    advance: Callable[[int], None],
) -> Statistics:
    """Return the gradient of the summed loss with respect to each target's weight.

    It is that of a change of every entry, which layers of all types and quantised ones have.
    """
    model = classifier.model
    active = model_adapters(model).active
    every = Sparse(method.target_modules, method.layers, method.trained_modules, density=1.0)
    adapt(model, every, name=_LOOKING, head=classifier.head_parameters, initial=head)
    try:
        with evaluating(model):
            for row in rows:
                loss_of(row).backward()
                advance(1)
        return {
            target: {"gradient": gradient}
            for target in model_adapters(model).adapters[_LOOKING].targets
            if (gradient := _gradient_of(model.get_submodule(target))) is not None
        }
    finally:
        remove_adapter(model, _LOOKING)
        activate(model, active)


def _gradient_of(module: nn.Module) -> Tensor | None:
    """Return the gradient of a change of the module's weight, in its view; None if it had none."""
    state = layer_state(module)
    gradient = state.tensors(_LOOKING)["sparse_values"].grad
    if gradient is None:
        return None
    columns = state.view.outputs if state.view.lookup else state.view.inputs
    return gradient.cpu().double().view(-1, columns)
