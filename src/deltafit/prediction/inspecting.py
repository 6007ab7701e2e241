"""``inspect``: what a model offers to adapters, or what a saved adapter changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from deltafit.adapters import (
    adapter_tensors,
    load_adapter,
    model_adapters,
    quantise,
    read_adapter,
    remove_adapter,
    select_targets,
)
from deltafit.adapters.inspection import Inspection, inspect_model
from deltafit.adapters.movement import MatrixChange, layer_changes, replaced_changes
from deltafit.data import resolve_model
from deltafit.methods import Insertion, LoRA, Method
from deltafit.prediction.folder import AS_LOADED, load_base, load_saved, read_facts
from deltafit.prediction.location import is_run_or_adapter
from deltafit.tasks.classification import HeadSettings, classifier_structure


@dataclass(frozen=True)
class AdapterInspection:
    """What a saved adapter holds: its method and facts; what it changed, replaced and inserted."""

    folder: Path
    method: Method
    facts: dict[str, Any]
    changes: tuple[MatrixChange, ...]
    replaced: dict[str, tuple[int, ...]]
    inserted: dict[str, tuple[int, ...]]


def inspect(
    model_or_folder: str | Path,
    *,
    method: LoRA = LoRA(),
    batch_size: int = 16,
    sequence_length: int = 128,
    model: str | None = None,
) -> Inspection | AdapterInspection:
    """Look into a model, or into a saved adapter.

    A model's weights are not loaded: its structure alone decides.

    Args:
        model_or_folder: a model as ``train`` takes it, or the folder of a run or adapter.
        method: the rank and targets to count with.
        batch_size: examples in a training step, for the memory foretold.
        sequence_length: tokens in an example, padding included.
        model: where to find an adapter's base, if not where it was found when training.

    Raises:
        DeltafitError: there is no such model or adapter, or it cannot be loaded.
    """
    folder = Path(model_or_folder)
    if is_run_or_adapter(folder):
        return _inspect_adapter(folder, model)
    structure, head = classifier_structure(resolve_model(model_or_folder), HeadSettings())
    modules = {name.rpartition(".")[0] for name in head}
    targets = select_targets(
        structure, method.target_modules, layers=method.layers, exclude=modules
    )
    return inspect_model(
        structure,
        targets,
        rank=method.rank,
        head=modules,
        batch_size=batch_size,
        sequence_length=sequence_length,
    )


def _inspect_adapter(folder: Path, model: str | None) -> AdapterInspection:
    saved = load_saved(folder, model=model)
    network = saved.classifier.model
    state = model_adapters(network)
    assert state.active is not None
    adapter = state.adapters[state.active]
    changes = layer_changes(network, state.active)
    replaced = {name: tuple(tensor.shape) for name, tensor in adapter.replaced.items()}
    inserted = {
        name: tuple(tensor.shape)
        for name, tensor in adapter_tensors(network, state.active).items()
        if isinstance(adapter.method, Insertion) and name not in replaced
    }
    return AdapterInspection(folder, adapter.method, saved.facts, changes, replaced, inserted)


def changes_of_runs(adapters: Mapping[str, Path]) -> dict[str, tuple[MatrixChange, ...]]:
    """Return how far each adapter moved the matrices of its base.

    Parameters that are stored whole count too, the head's apart. A base that the next adapter has
    too is loaded once; nothing is predicted, and the canaries are not asked.

    Args:
        adapters: folders of adapters, by any name.

    Raises:
        DeltafitError: a file is missing or damaged, or a base is not found.
    """
    changes: dict[str, tuple[MatrixChange, ...]] = {}
    known, network, name = None, nn.Module(), "default"
    for run, folder in adapters.items():
        facts = read_facts(folder)
        base, head = facts["base"], facts["head_parameters"]
        weights = base.get("weights", AS_LOADED)
        if known != (base["name"], weights, facts["head"]):
            known = base["name"], weights, facts["head"]
            network = load_base(folder, facts, None).model
            if weights != AS_LOADED:
                quantise(network, weights)
        load_adapter(network, read_adapter(folder), name)
        changes[run] = layer_changes(network, name) + replaced_changes(network, name, head)
        remove_adapter(network, name)
    return changes
