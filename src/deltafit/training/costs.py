"""What a run cost: parameters, time, memory and size; and the memory foretold beside it."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from deltafit.adapters import adapter_tensors, base_parameters, model_adapters
from deltafit.adapters.inspection import activation_values
from deltafit.adapters.structure import is_matrix, repeated_blocks, within
from deltafit.data import epoch_order
from deltafit.methods import Full
from deltafit.tasks.classification import Classifier
from deltafit.training.config import RunConfig
from deltafit.training.course import Course
from deltafit.training.memory import PeakMemory


def costs_of(
    classifier: Classifier, course: Course, peak: PeakMemory, adapter_folder: Path
) -> dict[str, Any]:
    """Return the run's costs as JSON values: counts, seconds and bytes.

    Examples per second are of training alone, without evaluation.
    """
    state = model_adapters(classifier.model)
    assert state.active is not None
    trainable = sum(t.numel() for t in adapter_tensors(classifier.model, state.active).values())
    replaced = state.adapters[state.active].replaced
    base = base_parameters(classifier.model)
    total = sum(p.numel() for p in base.values()) + trainable
    total -= sum(base[name].numel() for name in replaced)
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


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """Return what the timings depend on."""
    return {
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
    }


def expected_memory(
    classifier: Classifier, config: RunConfig, rows: Sequence[Sequence[int]]
) -> dict[str, int]:
    """Foretell the bytes that training will need, by part, for an adapted model.

    Activations are those of the first epoch's largest batch; see ``activation_values`` for what
    they count. What the process holds before training starts is measured and not foretold.

    Args:
        classifier: with its adapter active and nothing trained yet.
        config: the run.
        rows: tokenised training texts.
    """
    model = classifier.model
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    trained_bytes = sum(p.numel() * p.element_size() for p in trained.values())
    size = config.settings.batch_size
    order = epoch_order(len(rows), config.settings.seed, 0)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    shapes = [(len(batch), max(len(rows[row]) for row in batch)) for batch in batches]
    count, longest = max(shapes, key=lambda shape: shape[0] * shape[1])
    if isinstance(config.method, Full):
        targets, rank = None, 0
    else:
        modules = [n for n, m in model.named_modules() if is_matrix(m)]
        targets = tuple(n for n in modules if any(within(p, n) for p in trained))
        rank = getattr(config.method, "rank", 0)
    kept = activation_values(model, repeated_blocks(model), longest, targets, rank)
    return {
        "process_before": psutil.Process().memory_info().rss,
        "gradients": trained_bytes,
        "optimiser": 2 * trained_bytes,
        "activations": kept * count * longest * 4,
    }
