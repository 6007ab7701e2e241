"""The precision of a run: decided once, kept in its checkpoints, and no hope but a measurement."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from deltafit.adapters.activations import attention_matrices
from deltafit.adapters.structure import layer_shape
from deltafit.engine import (
    ProductPrecision,
    attention_shape,
    check_attention,
    check_products,
    frozen_products,
    probe_attention,
    probe_precision,
    reduced_attention,
    reduced_products,
)
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.training.constant import ConstantStates
from deltafit.training.course import Course
from deltafit.training.progress import Reporter
from deltafit.training.settings import Precision, TrainingSettings

# Values of frozen weights. Below, a step is made of calls, and not of products.
_WORTH = 1_000_000


def planned_precision(
    model: nn.Module, asked: Precision, outside: Collection[nn.Module] = ()
) -> ProductPrecision:
    """Return the precision of a model's frozen products, before they were checked.

    Args:
        model: adapted, on the device it trains on.
        asked: auto lets a measurement on this machine decide.
        outside: blocks that never run in training mode.
    """
    products = frozen_products(model, outside)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not products or not on_cpu or asked in ("float32", "fp16"):
        return "float32"
    if asked == "bf16":
        return "bf16"
    return probe_precision(_shapes(products)) if _worth_measuring(products) else "float32"


@contextmanager
def chosen_precision(
    classifier: Classifier,
    rows: Sequence[Sequence[int]],
    length: int,
    settings: TrainingSettings,
    course: Course,
    constant: ConstantStates,
    reporter: Reporter,
    accelerator: Accelerator,
) -> Iterator[None]:
    """Train with frozen products in bf16 within the block, where that was asked for or is faster.

    Where they are, packed attention that drops weights is too if it is faster so. The decisions are
    kept in ``course``: a resumed run goes on in the precision that it began with, on another
    machine too.

    Args:
        classifier: adapted; its model on the device it trains on.
        rows: a batch to check bf16 on.
        length: tokens of a row that attention is measured on.
        settings: the precision that was asked for, and whether the base drops.
        course: where the run stands.
        constant: the blocks that give constants do so in float32.
        reporter: told why bf16 is not used that was asked for or is faster.
        accelerator: mixed precision, if there is any, is Accelerate's.
    """
    mixed = accelerator.mixed_precision
    if course.precision is None and mixed != "no":
        course.precision = mixed
    elif course.precision is None:
        decided = _decide(classifier, rows, settings.precision, constant, reporter)
        course.precision = _agreed(decided, accelerator)
    reduced = mixed == "no" and course.precision == "bf16"
    if reduced and course.attention_precision is None:
        decided = "float32"
        # A run that was begun without a decision goes on without it.
        if course.packed and not course.step and settings.base_dropout == "configured":
            decided = _decide_attention(classifier, rows, length, constant, reporter)
        course.attention_precision = _agreed(decided, accelerator)
    with ExitStack() as stack:
        if reduced:
            stack.enter_context(reduced_products(classifier.model, outside=constant.blocks))
        if course.attention_precision == "bf16":
            stack.enter_context(reduced_attention(classifier.model))
        yield


def _decide(
    classifier: Classifier,
    rows: Sequence[Sequence[int]],
    asked: Precision,
    constant: ConstantStates,
    reporter: Reporter,
) -> ProductPrecision:
    model = classifier.model
    planned = planned_precision(model, asked, constant.blocks)
    if planned == "float32":
        if asked == "bf16":
            reporter.say(
                "No frozen product with float32 weights is part of a training step, so it stays in "
                "float32."
            )
        return planned
    reason = check_products(model, batch_of(classifier, rows), outside=constant.blocks)
    if reason is None:
        return planned
    reporter.say(f"{reason} It trains in float32.")
    return "float32"


def _shapes(products: Collection[nn.Module]) -> list[tuple[int, int]]:
    return [layer_shape(module) for module in products]


def _worth_measuring(products: Collection[nn.Module]) -> bool:
    return sum(inputs * outputs for inputs, outputs in _shapes(products)) >= _WORTH


def _decide_attention(
    classifier: Classifier,
    rows: Sequence[Sequence[int]],
    length: int,
    constant: ConstantStates,
    reporter: Reporter,
) -> ProductPrecision:
    model = classifier.model
    # Where no weights are dropped, torch's fused kernel keeps none, and bf16 would keep them all.
    if not attention_matrices(model, packed=True):
        return "float32"
    shape = attention_shape(model, length)
    worth = _worth_measuring(frozen_products(model, constant.blocks))
    if shape is None or not worth or probe_attention(shape) == "float32":
        return "float32"
    reason = check_attention(model, batch_of(classifier, rows))
    if reason is None:
        return "bf16"
    reporter.say(f"{reason} It stays in float32.")
    return "float32"


def _agreed(decided: ProductPrecision, accelerator: Accelerator) -> ProductPrecision:
    """Return bf16 if all processes are for it: on a busy machine they may measure otherwise."""
    votes = torch.tensor(float(decided == "bf16"), device=accelerator.device)
    all_for_it = float(accelerator.reduce(votes, "sum")) == accelerator.num_processes
    return "bf16" if all_for_it else "float32"
