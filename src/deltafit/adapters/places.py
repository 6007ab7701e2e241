"""Where insertions sit: what in a block ends its attention, and what its feed-forward part."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from deltafit.adapters.attention import AttentionView, add_to_attention
from deltafit.adapters.layers import add_to_layer, view_of
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.prompting import check_positions, encoder_around, hook_calls
from deltafit.adapters.shared import SharedTensors
from deltafit.adapters.structure import (
    is_matrix,
    layer_shape,
    main_stack,
    repeated_blocks,
    within,
)
from deltafit.adapters.targets import in_layers
from deltafit.errors import DeltafitError
from deltafit.methods import AttentionInsertion, BlockInsertion, Insertion, LayerMethod, Method


def select_places(model: nn.Module, method: Insertion) -> tuple[str, ...]:
    """Return the full names of the modules that an insertion sits in, in the module tree's order.

    Args:
        model: any module with repeated blocks; the meta device will do.
        method: which of them.

    Raises:
        DeltafitError: a block does not have such a module as far as its modules tell.
        UsageError: an index of ``layers`` is out of range.
    """
    chosen = set(method.places(_BlockModules(model)))
    if isinstance(method, BlockInsertion) and method.layers is not None:
        chosen &= set(in_layers(model, tuple(chosen), repeated_blocks(model), method.layers))
    places = tuple(name for name, _ in model.named_modules() if name in chosen)
    if isinstance(method, AttentionInsertion) and method.taken_positions:
        check_positions(model)
    for place in places:
        view_for(model, place, method)  # which may be refused
    return places


def view_for(model: nn.Module, name: str, method: Method) -> ModuleView:
    """Return the module of this name as a method sees it.

    Raises:
        DeltafitError: no view exists for its type, or what it computes cannot be changed.
    """
    module = model.get_submodule(name)
    if isinstance(method, AttentionInsertion):
        return AttentionView(module)
    try:
        return view_of(module)
    except DeltafitError as error:
        raise DeltafitError(f"{name}: {error}") from None


def add_to_modules(
    model: nn.Module,
    adapter: str,
    layers: Mapping[str, tuple[LayerMethod, Mapping[str, Tensor]]],
    shared: SharedTensors,
) -> None:
    """Give modules one more adapter, inactive, in the way that its method needs.

    Args:
        model: holds them.
        adapter: its name.
        layers: by the modules' names, in the module tree's order: the method as it applies there,
            and its tensors.
        shared: what they compute with besides.
    """
    for name, (method, tensors) in layers.items():
        module = model.get_submodule(name)
        if isinstance(method, AttentionInsertion):
            add_to_attention(module, adapter, method, tensors, shared)
        else:
            parent = model.get_submodule(name.rpartition(".")[0])
            add_to_layer(module, adapter, method, tensors, parent, shared)
    if layers:
        name, (method, _) = next(iter(layers.items()))
        if method.taken_positions:  # one of its places is enough for the calls of all
            hook_calls(model, model.get_submodule(name))


class _BlockModules:
    """The modules of a model's blocks, found by structure."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        main_stack(model)  # raises where there is none
        self._blocks = [block for stack in repeated_blocks(model) for block in stack.blocks]

    def attention_outputs(self) -> tuple[str, ...]:
        """Return the last matrix of each block's attention."""
        return tuple(self._parts_of(block)[0][-1] for block in self._blocks)

    def feed_forward_outputs(self) -> tuple[str, ...]:
        """Return the last matrix behind each block's attention."""
        return tuple(self._parts_of(block)[1][-1] for block in self._blocks)

    def attentions(self) -> tuple[str, ...]:
        """Return the module that holds the first matrix of each block's attention."""
        return tuple(self._attention_of(block) for block in self._blocks)

    def input_embeddings(self) -> tuple[str, ...]:
        """Return the table of tokens of the model around the largest stack of blocks."""
        table = encoder_around(self._model).get_input_embeddings()
        return tuple(name for name, module in self._model.named_modules() if module is table)

    def _attention_of(self, block: str) -> str:
        module = self._model.get_submodule(block)
        attention, _ = _split([name for name, inner in module.named_modules() if is_matrix(inner)])
        name = f"{block}.{attention[0].rpartition('.')[0]}" if attention else block
        # What is known of a model of transformers, of the innermost one around the block.
        known = [
            model._can_set_attn_implementation()
            for around, model in self._model.named_modules()
            if within(block, around) and hasattr(model, "_can_set_attn_implementation")
        ]
        attends = hasattr(self._model.get_submodule(name), "config")
        if not attention or not attends or not known or not known[-1]:
            raise DeltafitError(
                f"{type(self._model).__name__} computes attention in its own way, past "
                "transformers' attention interface, so no virtual tokens can stand before its "
                "keys. Choose another method, such as lora or bottleneck."
            )
        return name

    def _parts_of(self, block: str) -> tuple[list[str], list[str]]:
        """Return the full names of a block's matrices, of its attention and of the rest."""
        module = self._model.get_submodule(block)
        names = [name for name, inner in module.named_modules() if is_matrix(inner)]
        attention, rest = _split(names)
        shapes = {name: layer_shape(module.get_submodule(name)) for name in names}
        width = shapes[names[0]][0]
        # One matrix in, perhaps a gate, and one out. More are experts, or attention to an encoder.
        if (
            not attention
            or len(rest) not in (2, 3)
            or any(shapes[part[-1]][1] != width for part in (attention, rest))
        ):
            raise DeltafitError(
                f"{type(self._model).__name__} has no known place behind attention and the "
                f"feed-forward part: the linear layers of {block} are {', '.join(names)}, and not "
                "those of an attention and two or three behind it, both ending at the block's "
                "width. Choose a method that names its own target modules, such as lora."
            )
        return [f"{block}.{name}" for name in attention], [f"{block}.{name}" for name in rest]


def _split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a block's matrices into those of its attention and the rest, each in their order.

    Attention is the first of the block's modules that holds several; what wraps all of them is
    looked into.
    """
    depth = 0
    while True:
        inside: dict[str, list[str]] = defaultdict(list)
        for name in names:
            inside[".".join(name.split(".")[: depth + 1])].append(name)
        if len(inside) > 1 or not any(name.count(".") > depth for name in names):
            break
        depth += 1
    attention = next((part for part in inside.values() if len(part) > 1), [])
    return attention, [name for name in names if name not in attention]
