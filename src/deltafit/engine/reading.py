"""The last block for the tokens alone that the head reads: the first one of every row.

The other tokens give the last block keys and values, and nothing more comes of them: what its
queries, its output and its feed-forward layers make of them is thrown away by the head.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from deltafit.adapters.structure import is_matrix
from deltafit.engine.calls import evaluating
from deltafit.engine.groups import Group
from deltafit.engine.layout import CannotPackError, Layout, find_layout
from deltafit.engine.packing import find_stack, is_packed, packed


@dataclass(frozen=True)
class KeysAndValues:
    """Where the last block's keys and values come from: two layers that take the block's input.

    Attributes:
        key: the module's name in the model.
        value: the same.
    """

    key: str
    value: str


def find_keys_and_values(model: nn.Module, batch: Mapping[str, Tensor]) -> KeysAndValues:
    """Return the layers whose outputs are the last block's keys and values, as one batch shows.

    Args:
        model: as for ``packed``; it is left in the mode it was in.
        batch: its keywords.

    Raises:
        CannotPackError: there are no such two layers, as where the block norms its input first, or
            makes keys and values in one product; or the model can only run padded.
    """
    stack, owner = find_stack(model)
    last = stack.blocks[-1]
    block = model.get_submodule(last)
    watched = _Watched()
    with ExitStack() as restore, evaluating(model), torch.no_grad(), packed(model):
        hooks = [block.register_forward_pre_hook(watched.enter, with_kwargs=True)]
        hooks += [
            module.register_forward_hook(watched.note(f"{last}.{name}"))
            for name, module in block.named_modules()
            if is_matrix(module)
        ]
        for hook in hooks:
            restore.callback(hook.remove)
        model(**batch)
    found = [[name for name, given in watched.made if _is_view(t, given)] for t in watched.attended]
    if [len(names) for names in found] != [1, 1] or found[0] == found[1]:
        raise CannotPackError(
            f"The last block of {type(owner).__name__} does not make its keys and values straight "
            "from its input, in a layer each."
        )
    return KeysAndValues(found[0][0], found[1][0])


@contextmanager
def first_tokens(model: nn.Module, layers: KeysAndValues) -> Iterator[None]:
    """Let the last block of a packed model compute the first token of each row alone.

    That holds within calls of ``model`` itself. The state behind the block is then NaN everywhere
    else, so that a head which reads more than it was found to read cannot go unnoticed. What is
    called inside the model (its encoder, for features) gives all states, as does a batch that runs
    padded, or in which tokens do not see their whole row.

    Args:
        model: in ``packed``, with a head that reads first tokens; see ``find_reading``.
        layers: of the last block.

    Raises:
        ValueError: the model is not in ``packed``.
    """
    if not is_packed(model):
        raise ValueError("first_tokens works on a packed sheet: call it inside packed(model).")
    stack, _ = find_stack(model)
    reader = _Reader(model.get_submodule(layers.key), model.get_submodule(layers.value))
    block = model.get_submodule(stack.blocks[-1])
    with ExitStack() as restore:
        for hook in (
            model.register_forward_pre_hook(reader.open),
            model.register_forward_hook(reader.close, always_call=True),
            block.register_forward_pre_hook(reader.narrow, with_kwargs=True),
        ):
            restore.callback(hook.remove)
        yield


class FirstTokens(Layout):
    """The first token of each row of a sheet: a small sheet, whose tokens attend to the whole one.

    Args:
        whole: the layout that the tokens are taken from; every token sees its whole row.
        sheet: what the block is given of it, ``[1, tokens, width]``.
        key: the layer that makes keys of the sheet.
        value: the layer that makes values of it.
    """

    def __init__(self, whole: Layout, sheet: Tensor, key: nn.Module, value: nn.Module) -> None:
        lengths = [length for group in whole.groups for length in group.lengths]
        device = whole.places.device
        starts = torch.tensor([0, *accumulate(lengths[:-1])], device=device)
        groups = tuple(Group((1,) * group.rows, False, None, device) for group in whole.groups)
        places = whole.places.index_select(0, starts)
        super().__init__(whole.padded_shape, groups, places, window=None)
        self._whole, self._sheet, self._layers = whole, sheet, (key, value)
        self.states = sheet.index_select(1, starts)  # [1, rows, width]

    @property
    def sheets(self) -> tuple[Layout, ...]:
        """The layouts of what a block computes: its own, and that of keys and values."""
        return self, self._whole

    @property
    def longest(self) -> int:
        """Tokens of the longest row, of which the sheet holds the first."""
        return self._whole.longest

    def attended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, tuple[Group, ...]]:
        """Return keys, values and groups of the whole sheet; the arguments tell their heads."""
        # They are made here, and not kept by the block's own call of the layers, so that nothing
        # lies between the two calls: what gradient checkpointing runs again comes by here again.
        keys, values = (
            layer(self._sheet).unflatten(-1, (own.shape[1], own.shape[3])).transpose(1, 2)
            for layer, own in zip(self._layers, (key, value), strict=True)
        )
        return keys, values, self._whole.groups

    def unpack(self, sheet: Tensor) -> Tensor:
        """Return ``[1, rows, ...]`` as ``[rows, length, ...]``, NaN but for the first tokens."""
        rows, length = self.padded_shape
        flat = sheet.new_full((rows * length, *sheet.shape[2:]), torch.nan)
        filled: Tensor = flat.index_copy(0, self.places, sheet[0])
        return filled.view(rows, length, *sheet.shape[2:])


class _Reader:
    """Narrows what the last block is given, in calls of the model.

    Args:
        key: the layer that makes the block's keys.
        value: the layer that makes its values.
    """

    def __init__(self, key: nn.Module, value: nn.Module) -> None:
        self._layers, self._is_called = (key, value), False
        # With gradient checkpointing, some versions of transformers run a block's hooks again in
        # the backward pass, when the model's own call is over.
        self._narrowed: WeakSet[Layout] = WeakSet()

    def open(self, model: nn.Module, args: Any) -> None:
        self._is_called = True

    def close(self, model: nn.Module, args: Any, output: Any) -> None:
        self._is_called = False

    def narrow(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout = find_layout(args, kwargs)
        if layout is None or not (self._is_called or layout in self._narrowed):
            return None
        if any(group.causal or group.mask is not None for group in layout.groups):
            return None
        self._narrowed.add(layout)
        sheet = _hidden_of(args, kwargs)
        first = FirstTokens(layout, sheet, *self._layers)
        return _exchanged(args, kwargs, {id(layout): first, id(sheet): first.states})


class _Watched:
    """What the last block was given, what layers made of that, and what it attended to.

    Attributes:
        made: the names of layers that were given the block's input, and what each gave.
        attended: keys and values.
    """

    def __init__(self) -> None:
        self.made: list[tuple[str, Tensor]] = []
        self.attended: list[Tensor] = []
        self._hidden: Tensor | None = None

    def enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout = find_layout(args, kwargs)
        if layout is None:
            return None
        self._hidden = _hidden_of(args, kwargs)
        return _exchanged(args, kwargs, {id(layout): _WatchedLayout(layout, self.attended)})

    def note(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and args[0] is self._hidden and isinstance(output, Tensor):
                self.made.append((name, output))

        return note


class _WatchedLayout(Layout):
    """A layout that notes what its tokens attend to."""

    def __init__(self, layout: Layout, attended: list[Tensor]) -> None:
        # Without its window: one kernel for all rows would not ask what they attend to.
        super().__init__(layout.padded_shape, layout.groups, layout.places, window=None)
        self._attended = attended

    def attended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, tuple[Group, ...]]:
        self._attended += [key, value]
        return super().attended(key, value)


def _hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _exchanged(
    args: tuple[Any, ...], kwargs: dict[str, Any], others: dict[int, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with others in the places of some, which are told by ``id``."""
    return (
        tuple(others.get(id(value), value) for value in args),
        {name: others.get(id(value), value) for name, value in kwargs.items()},
    )


def _is_view(tensor: Tensor, given: Tensor) -> bool:
    """Return whether a tensor is all of another, in another shape and nothing else."""
    storages = {each.untyped_storage().data_ptr() for each in (tensor, given)}
    return tensor.numel() == given.numel() and len(storages) == 1
