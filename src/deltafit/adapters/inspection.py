"""What a model is made of and what adapting it would cost, before anything is trained.

Nothing is computed and no value is read, so a model on the meta device will do.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from deltafit.adapters.activations import VALUE_BYTES, activation_values
from deltafit.adapters.candidates import Candidate, candidates, leaf_name
from deltafit.adapters.layers import is_adapted, layer_state
from deltafit.adapters.model import base_parameters
from deltafit.adapters.structure import (
    is_excluded,
    layer_shape,
    main_stack,
    repeated_blocks,
)

MOMENTS = 2  # that Adam keeps of every trained value


@dataclass(frozen=True)
class TreeLine:
    """One line of the folded module tree.

    Args:
        depth: 0 for the model itself.
        name: the name below its parent; equal neighbours in a list fold to "layer.0-5 ×6".
        kind: the module's class name.
        shape: of its own ``weight`` as stored; None where it has none.
        parameters: held by one such module and what is in it, adapters apart.
        target: whether it would be adapted.
        copies: how many modules the line stands for.
    """

    depth: int
    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    target: bool
    copies: int = 1


@dataclass(frozen=True)
class MatrixCost:
    """Matrices of one name and shape: r(d+k) values of an adapter against d·k of the weight."""

    name: str
    inputs: int
    outputs: int
    count: int
    weight_values: int
    adapter_values: int
    times_fewer: float


@dataclass(frozen=True)
class Memory:
    """Bytes of one training state, by part; ``activations`` are an estimate."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    total: int


@dataclass(frozen=True)
class TrainingCost:
    """What one way of training asks for.

    Args:
        trainable: values that are trained.
        share: of all values of the model, the adapter's included; 0 to 1.
        state_values_3x: 3 · trainable, a convention found in print: weight, gradient and one more.
        state_values_4x: 4 · trainable, exact for Adam: weight, gradient and two moments.
        saved_bytes: size of the trained values on disk, the file's header apart.
        memory: bytes while training, by part.
    """

    trainable: int
    share: float
    state_values_3x: int
    state_values_4x: int
    saved_bytes: int
    memory: Memory


@dataclass(frozen=True)
class Inspection:
    """All that ``inspect_model`` found; ``to_dict`` gives it as JSON values."""

    model_class: str
    model_type: str | None
    stack: str | None
    blocks: int
    tree: tuple[TreeLine, ...]
    candidates: tuple[Candidate, ...]
    targets: tuple[str, ...]
    rank: int
    matrices: tuple[MatrixCost, ...]
    parameters: int
    adapter_parameters: int
    head_parameters: int
    adapter: TrainingCost
    full: TrainingCost
    batch_size: int
    sequence_length: int

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


def inspect_model(
    model: nn.Module,
    method_targets: tuple[str, ...],
    *,
    rank: int = 8,
    head: Collection[str] = (),
    batch_size: int = 16,
    sequence_length: int = 128,
    full: bool = False,
) -> Inspection:
    """Return the structure of ``model`` and the cost of a low-rank adapter on ``method_targets``.

    Args:
        model: any module; may be on the meta device.
        method_targets: full names of the modules to adapt, as ``select_targets`` gives them.
        rank: r of the adapter.
        head: names of modules or parameters trained whole beside the adapter.
        batch_size: examples in a training step.
        sequence_length: tokens in an example, padding included.
        full: list every block instead of folding equal ones.
    """
    base = base_parameters(model)
    whole = [name for name in base if is_excluded(name, head)]
    matrices = _matrices(model, method_targets, rank)
    adapter = sum(matrix.adapter_values * matrix.count for matrix in matrices)
    stacks = repeated_blocks(model)
    stack = main_stack(model) if stacks else None
    tokens = batch_size * sequence_length
    kept_adapter = activation_values(model, stacks, sequence_length, method_targets, rank)
    kept_full = activation_values(model, stacks, sequence_length)
    return Inspection(
        model_class=_class_name(model),
        model_type=getattr(getattr(model, "config", None), "model_type", None),
        stack=stack.name if stack else None,
        blocks=stack.length if stack else 0,
        tree=tuple(_tree(model, frozenset(method_targets), {id(p) for p in base.values()}, full)),
        candidates=candidates(model, head),
        targets=method_targets,
        rank=rank,
        matrices=matrices,
        parameters=_values(base, base),
        adapter_parameters=adapter,
        head_parameters=_values(base, whole),
        adapter=_cost(base, whole, adapter, sum(kept_adapter.values()) * tokens),
        full=_cost(base, base, 0, sum(kept_full.values()) * tokens),
        batch_size=batch_size,
        sequence_length=sequence_length,
    )


def _values(base: Mapping[str, nn.Parameter], names: Iterable[str]) -> int:
    return sum(base[name].numel() for name in names)


def _cost(
    base: Mapping[str, nn.Parameter], trained: Iterable[str], adapter: int, activations: int
) -> TrainingCost:
    """Return the cost of training the named parameters and ``adapter`` values beside the base."""
    sizes = {name: parameter.numel() * parameter.element_size() for name, parameter in base.items()}
    added = adapter * VALUE_BYTES
    saved = added + sum(sizes[name] for name in trained)
    parts = (sum(sizes.values()) + added, saved, MOMENTS * saved, activations * VALUE_BYTES)
    trainable = adapter + _values(base, trained)
    share = trainable / max(adapter + _values(base, base), 1)
    memory = Memory(*parts, total=sum(parts))
    return TrainingCost(trainable, share, 3 * trainable, 4 * trainable, saved, memory)


def _matrices(model: nn.Module, targets: Iterable[str], rank: int) -> tuple[MatrixCost, ...]:
    counts = Counter((leaf_name(name), *layer_shape(model.get_submodule(name))) for name in targets)
    costs = []
    for (name, inputs, outputs), count in counts.items():
        dense, low_rank = inputs * outputs, rank * (inputs + outputs)
        costs.append(MatrixCost(name, inputs, outputs, count, dense, low_rank, dense / low_rank))
    return tuple(costs)


def _tree(
    model: nn.Module, targets: frozenset[str], base: set[int], unfolded: bool
) -> Iterator[TreeLine]:
    def line(module: nn.Module, full_name: str, depth: int) -> TreeLine:
        count = sum(p.numel() for p in module.parameters() if id(p) in base)
        shape = getattr(getattr(module, "weight", None), "shape", None)
        stored = None if shape is None else tuple(shape)
        return TreeLine(depth, "", _class_name(module), stored, count, full_name in targets)

    def below(module: nn.Module, prefix: str, shown: str, depth: int) -> Iterator[TreeLine]:
        """Lines of the children; lists get none of their own, their names go to the members."""
        entries: list[tuple[str, tuple[TreeLine, ...], bool]] = []
        for name, child in module.named_children():
            full_name = f"{prefix}.{name}" if prefix else name
            if isinstance(child, nn.ModuleList | nn.Sequential):
                inside = tuple(below(child, full_name, f"{shown}{name}.", depth))
                entries.append((name, inside, False))
            elif (top := line(child, full_name, depth)).parameters:
                entries.append((name, (top, *below(child, full_name, "", depth + 1)), True))
        fold = isinstance(module, nn.ModuleList | nn.Sequential) and not unfolded
        for _, run in groupby(entries, key=lambda entry: entry[1] if fold else entry[0]):
            (first, lines, named), *more = run
            if named:
                name = f"{first}-{more[-1][0]} ×{len(more) + 1}" if more else first
                yield replace(lines[0], name=f"{shown}{name}", copies=len(more) + 1)
            yield from lines[1 if named else 0 :]

    yield line(model, "", 0)
    yield from below(model, "", "", 1)


def _class_name(module: nn.Module) -> str:
    return (layer_state(module).original_class if is_adapted(module) else type(module)).__name__
