"""How a run's passes are executed: without padding, dropout in bulk, in the precision chosen."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from deltafit.data import across_lengths
from deltafit.engine import (
    KeysAndValues,
    bulk_dropout,
    check_packing,
    find_keys_and_values,
    find_reading,
    first_tokens,
    packed,
)
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.training.constant import ConstantStates
from deltafit.training.course import Course, Examples
from deltafit.training.gradients import disable_gradient_checkpointing
from deltafit.training.precision import chosen_precision
from deltafit.training.progress import Reporter
from deltafit.training.settings import Packing, TrainingSettings
from deltafit.training.validation import plain_forward, unwrap_forward

_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CHECKED = 4  # rows, of lengths from the shortest to the longest


@contextmanager
def fast_execution(
    classifier: Classifier,
    train: Examples,
    settings: TrainingSettings,
    course: Course,
    constant: ConstantStates,
    reporter: Reporter,
    accelerator: Accelerator,
) -> Iterator[None]:
    """Run the model's blocks on packed tokens within the block, if it gives the same so.

    The last one runs for first tokens alone, if the head reads no others. One batch goes both
    ways, forward and backward. What was found out is kept in ``course``, so that a resumed run is
    executed as it began.

    Args:
        classifier: adapted; its model on the device it trains on.
        train: the rows to learn from.
        settings: packing, precision and batch size; the checks take no more rows.
        course: where the run stands.
        constant: where all blocks are constant there is nothing to pack.
        reporter: told why a model runs padded, or not in bf16.
        accelerator: brings mixed precision, if there is any.
    """
    model = classifier.model
    rows = across_lengths(train.rows, max(2, min(_CHECKED, settings.batch_size)))
    layers: KeysAndValues | None = None
    if course.packed is None:
        reason = None
        worth = wants_packing(model, settings.packing) and not constant.whole
        if worth:
            mixed = _MIXED.get(accelerator.mixed_precision)
            with plain_forward(model):
                reason = check_packing(model, batch_of(classifier, rows), mixed=mixed)
        course.packed = worth and reason is None
        if course.packed:
            with plain_forward(model):
                layers = find_reading(model, batch_of(classifier, rows))
                course.first_tokens = layers is not None
        if reason is not None:
            reporter.say(f"{reason} It runs padded, which is slower.")
    with ExitStack() as stack:
        if _is_on_cpu(model):
            stack.enter_context(bulk_dropout(model))
        if course.packed:
            stack.enter_context(packed(model))
        length = _length_by_squares(train.rows)
        precision = chosen_precision(
            classifier, rows, length, settings, course, constant, reporter, accelerator
        )
        stack.enter_context(precision)
        if course.first_tokens:  # behind the check of precision, which looks at all states
            if layers is None:  # it was found out before the run was resumed
                with plain_forward(model):
                    layers = find_keys_and_values(model, batch_of(classifier, rows))
            stack.enter_context(first_tokens(model, layers))
        yield


def wants_packing(model: nn.Module, asked: Packing) -> bool:
    """Return whether training is to run packed, if the model can; ``asked`` is the setting.

    On a GPU small calls may cost more than some padding: nothing was measured there.
    """
    return asked == "on" or (asked == "auto" and _is_on_cpu(model))


def _length_by_squares(rows: Sequence[Sequence[int]]) -> int:
    """Return the tokens of a typical row for attention, whose time goes by their squares."""
    return round(math.sqrt(sum(len(row) ** 2 for row in rows) / max(len(rows), 1)))


def _is_on_cpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cpu"


def release(classifier: Classifier, settings: TrainingSettings, constant: ConstantStates) -> None:
    """Leave a trained model as it came: plain forward, no checkpointing, evaluation mode.

    Args:
        classifier: trained.
        settings: whether its blocks are recomputed.
        constant: its states' memory is given back.
    """
    constant.release()
    unwrap_forward(classifier.model)
    if settings.gradient_checkpointing:
        disable_gradient_checkpointing(classifier.model)
    classifier.model.eval()
