"""What a run cost: parameters, time, memory and size; and the memory foretold beside it."""

import math
import os
import platform
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from deltafit.adapters import (
    base_sizes,
    is_adapted,
    model_adapters,
    quantisation_of,
    trained_tensors,
)
from deltafit.adapters.activations import (
    VALUE_BYTES,
    activation_values,
    attention_matrices,
    passing_values,
)
from deltafit.adapters.inspection import MOMENTS
from deltafit.adapters.structure import (
    is_matrix,
    is_norm,
    layer_kind,
    layer_shape,
    repeated_blocks,
    within,
)
from deltafit.engine import MEMORY_LIMIT, frozen_products
from deltafit.engine.layout import CannotPackError
from deltafit.engine.packing import find_stack
from deltafit.engine.processor import processor_name
from deltafit.methods import Full, Method
from deltafit.tasks.classification import Classifier
from deltafit.training.accelerator import mixed_precision_of
from deltafit.training.config import RunConfig
from deltafit.training.course import Course
from deltafit.training.execution import wants_packing
from deltafit.training.memory import PeakMemory
from deltafit.training.passes import cut_passes, steps_of
from deltafit.training.precision import planned_precision
from deltafit.training.settings import TrainingSettings

HALF_BYTES = 2  # of bf16 and fp16

# Tensors that live and tensors that went lie side by side in glibc's heap, which can neither use
# the holes whole nor give them back. Measured on a BERT of 6 blocks of width 384, by method and
# settings, they are 0 to 0.9 of activations and temporaries; with MALLOC_MMAP_THRESHOLD_=131072,
# which gives every large tensor back at once and is slower, there are none.
_HOLES = 0.4


def costs_of(
    classifier: Classifier, course: Course, peak: PeakMemory, adapter_folder: Path
) -> dict[str, Any]:
    """Return the run's costs as JSON values: counts, seconds and bytes.

    Examples per second are of training alone, without evaluation.
    """
    trainable, total = parameter_counts(classifier.model)
    return {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "share_trainable": trainable / total,
        "training_seconds": course.seconds,
        "examples_seen": course.examples,
        "examples_per_second": course.examples / course.seconds if course.seconds else None,
        "peak_memory_bytes": peak.process,
        "peak_gpu_memory_bytes": peak.gpu,
        "saved_bytes": sum(f.stat().st_size for f in adapter_folder.iterdir()),
        "adapter_tensor_bytes": (adapter_folder / "adapter_model.safetensors").stat().st_size,
    }


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters the active adapter trains, and how many there are with it."""
    state = model_adapters(model)
    assert state.active is not None
    trainable = sum(tensor.numel() for tensor in trained_tensors(model, state.active).values())
    base = base_sizes(model)
    replaced = sum(base[name] for name in state.adapters[state.active].replaced)
    return trainable, sum(base.values()) + trainable - replaced


def gpu_name(device: torch.device) -> str | None:
    """Return what a GPU is called; None of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """Return what the timings depend on."""
    return {
        "device": str(accelerator.device),
        "gpu": gpu_name(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": processor_name(),
        "system": platform.system(),
    }


def expected_memory(
    classifier: Classifier,
    config: RunConfig,
    rows: Sequence[Sequence[int]],
    precision: str | None = None,
) -> dict[str, int]:
    """Foretell the bytes that training on a CPU, in one process, will need for an adapted model.

    Args:
        classifier: with its adapter active and nothing trained yet.
        config: the run.
        rows: tokenised training texts.
        precision: what the run was begun in; None for a new run.

    Returns:
        By part:

        * ``process_before``: what the process holds already, the weights too; measured.
        * ``weights``: copies of matrices; see ``_copied_bytes``.
        * ``gradients`` and ``optimiser``: one value, and Adam's two, for every one that is trained.
        * ``activations``: what the first epoch's largest pass keeps; see ``_kept_values``.
        * ``temporaries``: what a block computes and drops again, trained or not. It is about what
          one block would keep if all of it were trained, or, where none is gone back through for
          all tokens, holds as they pass (``passing_values``).
        * ``constant``: what a frozen prefix gives for all rows, if it is kept in memory.
        * ``holes``: what the heap does not get back; see ``_HOLES``.
    """
    model, settings = classifier.model, config.settings
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    trained_bytes = sum(p.numel() * p.element_size() for p in trained.values())
    packed = may_pack(model, settings)
    kept = _kept_values(classifier, config.method, trained, packed=packed)
    back = any(attends for _, attends in kept.values())
    dropped = _temporary_values(model, back)
    heads = attention_matrices(model, packed=packed) * (settings.base_dropout == "configured")
    mixed = mixed_precision_of(settings.precision, config.method) != "no"
    size = HALF_BYTES if mixed else VALUE_BYTES

    def needed(tokens: int, longest: int) -> tuple[int, int]:
        """Return the bytes of activations and temporaries of a pass."""
        matrices = VALUE_BYTES * heads * longest  # kept in float32 by mixed precision too
        blocks = [size * values + attends * matrices for values, attends in kept.values()]
        if settings.gradient_checkpointing and blocks:
            blocks = [max(blocks), len(blocks) * VALUE_BYTES * _width(model)]  # one, and all inputs
        return round(sum(blocks) * tokens), round((size * dropped + back * matrices) * tokens)

    shapes = _pass_shapes(rows, config.method.added_tokens, settings, packed=packed)
    activations, temporaries = max((needed(*shape) for shape in shapes), key=sum)
    return {
        "process_before": psutil.Process().memory_info().rss,
        "weights": _copied_bytes(model, kept, settings, mixed, precision),
        "gradients": trained_bytes,
        "optimiser": MOMENTS * trained_bytes,
        "activations": activations,
        "temporaries": temporaries,
        "constant": _constant_bytes(classifier, kept, rows) if settings.epochs > 1 else 0,
        "holes": round(_HOLES * (activations + temporaries)),
    }


def _temporary_values(model: nn.Module, back: bool) -> int:
    """Return what a block drops again per token; ``back``: some are gone back through for all."""
    stacks = repeated_blocks(model)
    if not back:
        return passing_values(model, stacks)
    return max(activation_values(model, stacks, 0).values())


def _width(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().hidden_size)


def _constant_bytes(
    classifier: Classifier, kept: Collection[str], rows: Sequence[Sequence[int]]
) -> int:
    """Return what `ConstantStates` keeps in memory, unless little of it is free."""
    blocks = [block for stack in repeated_blocks(classifier.model) for block in stack.blocks]
    if len(kept) == len(blocks):
        return 0
    size = VALUE_BYTES * _width(classifier.model) * sum(map(len, rows))
    return size if size <= MEMORY_LIMIT else 0


def _kept_values(
    classifier: Classifier, method: Method, trained: Collection[str], *, packed: bool
) -> dict[str, tuple[int, bool]]:
    """Return what blocks keep per token, and whether attention matrices beside it.

    Under a head alone that is nothing. See ``activation_values``; of a last block that was seen to
    run for first tokens alone it is input, keys and values. Before any evaluation none was seen.
    """
    model = classifier.model
    stacks = repeated_blocks(model)
    if isinstance(method, Full):
        values = activation_values(model, stacks, 0)
    else:
        targets = _trained_modules(model, set(trained) - set(classifier.head_parameters))
        values = activation_values(model, stacks, 0, targets, getattr(method, "rank", 0))
    kept = {block: (count, True) for block, count in values.items()}
    if packed and kept and classifier.reads is not None:
        layers = (classifier.reads.key, classifier.reads.value)
        shapes = [layer_shape(model.get_submodule(name)) for name in layers]
        # Its input, keys and values; what it makes of the first tokens is little.
        kept[list(kept)[-1]] = (shapes[0][0] + sum(outputs for _, outputs in shapes), False)
    return kept


def _trained_modules(model: nn.Module, trained: Collection[str]) -> tuple[str, ...]:
    """Return the modules whose inputs are kept for the gradients of these parameters."""
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        # What carries an adapter and is no layer is an attention with virtual tokens.
        if layer_kind(module) is None and not is_norm(module) and not is_adapted(module):
            continue
        if own := {parameter for parameter in trained if within(parameter, name)}:
            # A bias needs no input of its layer: what is around it trains, and not the layer.
            alone = layer_kind(module) is not None and own == {f"{name}.bias"}
            found[name.rpartition(".")[0] if alone else name] = None
    return tuple(found)


def may_pack(model: nn.Module, settings: TrainingSettings) -> bool:
    """Return whether training will probably run packed; see ``fast_execution``."""
    try:
        find_stack(model)
    except CannotPackError:
        return False
    return wants_packing(model, settings.packing)


def _pass_shapes(
    rows: Sequence[Sequence[int]], added: int, settings: TrainingSettings, *, packed: bool
) -> set[tuple[int, int]]:
    """Return ``(tokens, padding included; tokens of the longest)`` of the first epoch's passes.

    Passes are cut by the tokens of ``rows``; ``added`` ones run with each.
    """
    lengths = [len(row) for row in rows]
    passes = [
        [lengths[row] + added for row in part]
        for step in steps_of(len(lengths), settings, 0)
        for part in cut_passes(step, lengths, settings.batch_size, packed=packed)
    ]
    return {(sum(part) if packed else len(part) * max(part), max(part)) for part in passes}


def _copied_bytes(
    model: nn.Module,
    blocks: Collection[str],
    settings: TrainingSettings,
    mixed: bool,
    precision: str | None,
) -> int:
    """Return what copies of matrices take while they are trained through.

    In half precision they are of the frozen ones whose products are in bf16, or of all in
    ``blocks``, which the backward pass reads in mixed precision; in float32 of the largest one,
    where they are quantised and each is dequantised to be multiplied.
    """
    if mixed:
        inside = [m for n, m in model.named_modules() if any(within(n, block) for block in blocks)]
        copied = [module for module in inside if layer_kind(module) not in (None, "embedding")]
    else:
        stacks = repeated_blocks(model)
        below = [name for stack in stacks for name in stack.blocks if name not in blocks]
        outside = [model.get_submodule(name) for name in below]
        decided = precision or planned_precision(model, settings.precision, outside)
        copied = frozen_products(model, outside) if decided == "bf16" else []
    halved = sum(math.prod(layer_shape(module)) for module in copied)
    matrices = [m for m in model.modules() if is_matrix(m) and quantisation_of(m) is not None]
    dequantised = max((math.prod(layer_shape(module)) for module in matrices), default=0)
    return HALF_BYTES * halved + VALUE_BYTES * dequantised
