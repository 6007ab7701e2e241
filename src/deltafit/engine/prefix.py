"""The frozen part of a model below the lowest trained layer: for a text it is a constant.

When training touches only the head, the last block or the top layers, what enters the first
trained layer is the same in every epoch. So it can be computed once and fed from then on.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltafit.adapters.structure import BlockStack, main_stack, within
from deltafit.engine.calls import evaluating, first_of, replaced_forward
from deltafit.engine.digest import model_digest
from deltafit.errors import DeltafitError

_TOLERANCE = 1e-4  # of a tensor's largest value; feeding is another order of sums at most


class CannotFeedError(Exception):
    """Frozen blocks lie below all that is trained, and cannot be left out; the message says why."""


class _Reached(Exception):  # noqa: N818  # no error: the way out of a forward pass half-way
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class FrozenPrefix:
    """The blocks below the lowest trained layer, and what runs before them.

    Made by `find_prefix`.

    Args:
        model: the whole model.
        blocks: the blocks of the prefix, in order; the last one's output is the boundary.
        embeddings: modules that make the first block's input, and need not run when it does not.
        nothing: what is returned behind the last block's hidden states, each None, if it returns a
            tuple; None if it returns the states alone.
        whole: whether there are no blocks behind it.
        behind: names of modules that run behind the boundary alone: the other blocks, and whatever
            is trained outside the blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: tuple[nn.Module, ...],
        embeddings: tuple[nn.Module, ...],
        nothing: tuple[None, ...] | None,
        whole: bool,
        behind: tuple[str, ...],
    ) -> None:
        self.model, self.blocks, self.embeddings, self.whole = model, blocks, embeddings, whole
        self._nothing, self._behind = nothing, behind

    def digest(self) -> bytes:
        """Return what decides the states of a batch besides the batch, as a short value."""
        return model_digest(self.model, self._behind) + len(self.blocks).to_bytes(4, "big")

    def states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what leaves the prefix, ``[batch, length, width]``, without dropout or autocast.

        Where a row is padded they are zero. Within ``packed`` they may be a sheet, and are fed so.

        Args:
            batch: as the model takes it.
        """

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        handle = self.blocks[-1].register_forward_hook(leave)
        device = next(self.model.parameters()).device.type
        try:
            with evaluating(self.model), torch.no_grad(), torch.autocast(device, enabled=False):
                self.model(**batch)
        except _Reached as reached:
            return _without_padding(first_of(reached.output), batch)
        finally:
            handle.remove()
        raise AssertionError("the boundary was reached when the prefix was found")

    @contextmanager
    def fed(self, states: Tensor, *, padded: bool = True) -> Iterator[None]:
        """Let the model take ``states`` for what leaves the prefix, which does not run.

        Args:
            states: of the batch that the model is called with, as ``states`` gives them.
            padded: whether they are ``[batch, length, width]``. A packed sheet cannot stand for
                embeddings, so these run.
        """
        output = states if self._nothing is None else (states, *self._nothing)
        with ExitStack() as stack:
            for module in self.embeddings:
                stack.enter_context(
                    replaced_forward(module, lambda *args, **kwargs: states)
                    if padded
                    else evaluating(module)  # draws no random numbers either
                )
            for block in self.blocks:  # what all but the last one give goes nowhere
                stack.enter_context(replaced_forward(block, lambda *args, **kwargs: output))
            yield


def find_prefix(
    model: nn.Module, trained: Collection[str], batch: Mapping[str, Tensor]
) -> FrozenPrefix | None:
    """Return the frozen prefix of a model; None where no block lies below all that is trained.

    One batch goes through the model twice, the second time fed with what left the prefix in the
    first: the results differ if something else passes the boundary.

    Args:
        model: on any device; it is left in the mode it was in.
        trained: the names of the trained parameters.
        batch: a batch as the model takes it.

    Raises:
        CannotFeedError: there are such blocks, and the model does not give the same when it is fed.
    """
    try:
        stack = main_stack(model)
    except DeltafitError:
        return None
    owners = {name.rpartition(".")[0] for name in trained}
    inside = [stack.index_of(owner) for owner in owners]
    count = min((index for index in inside if index is not None), default=stack.length)
    if not count:
        return None
    if stack.shared:
        raise CannotFeedError("its blocks share their weights")
    try:
        with evaluating(model):
            return _checked(model, stack, count, owners, batch)
    except CannotFeedError:
        raise
    except Exception as error:  # what is fed to models unknown here can end in any
        raise CannotFeedError(f"fed with their states the model fails: {error}") from error


def _without_padding(states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return ``[batch, length, ...]`` or ``[batch · length, ...]`` with zeros for padding.

    So too ``[batch, heads, length, width]``, which norms of queries and keys may be given (those of
    Gemma 3 are). What has another shape (a packed sheet, one vector a text) has none, and stays.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return states
    rows, length = mask.shape
    if states.ndim == 4 and states.shape[1] != length and states.shape[::2] == (rows, length):
        return states * mask[:, None, :, None].to(states.dtype)
    if states.shape[:2] != (rows, length) and states.shape[0] != rows * length:
        return states
    by_token = states.reshape(rows, length, -1) * mask.unsqueeze(-1).to(states.dtype)
    return by_token.view(states.shape)


def _checked(
    model: nn.Module,
    stack: BlockStack,
    count: int,
    owners: Collection[str],
    batch: Mapping[str, Tensor],
) -> FrozenPrefix | None:
    """Return the prefix of ``count`` blocks; None if something below it is trained.

    Raises:
        CannotFeedError: the model does not compute the same when it is fed.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks = tuple(model.get_submodule(name) for name in stack.blocks[:count])
    # With the tensors of an adapter, the layer that they belong to.
    around = {*owners, *(name.rpartition(".")[0] for name in owners)}
    readers = {module for module, name in names.items() if name in around}
    expected = _Watched(model, blocks[-1], batch, readers)
    above = [name for name in owners if stack.index_of(name) is None]
    before, after = ({names[m] for m in part} for part in (expected.before, expected.after))
    # Whatever is trained outside the blocks must work behind the boundary alone. What is never
    # called (a table that a model reads by itself) may work anywhere.
    if not all(any(within(name, module) for module in after - before) for name in above):
        return None
    if len(expected.outputs) != 1:
        raise CannotFeedError(
            f"{stack.blocks[count - 1]} runs {len(expected.outputs)} times a pass"
        )
    (output,) = expected.outputs
    rest = output[1:] if isinstance(output, tuple) else None
    nothing = None if rest is None else (None,) * len(rest)
    states, whole = first_of(output), count == stack.length
    # Something besides the hidden states passes from block to block (T5's bias of its scores).
    crosses = not whole and any(value is not None for value in rest or ())
    if crosses or states.shape[:2] != _shape(batch):
        passed = "more than hidden states" if crosses else "other than a vector for each token"
        raise CannotFeedError(f"what passes from block to block is {passed}")
    fitting = {names[m] for m, shape in expected.shapes.items() if shape == states.shape}
    inputs = [n for n in fitting - after if _beside_blocks(n, stack)]
    outermost = [n for n in inputs if not any(within(n, m) and n != m for m in inputs)]
    behind = (*stack.blocks[count:], *above)
    # What a model does with its embeddings besides handing them on shows in the results.
    for left_out in dict.fromkeys((tuple(outermost), ())):
        embeddings = tuple(map(model.get_submodule, left_out))
        prefix = FrozenPrefix(model, blocks, embeddings, nothing, whole, behind)
        with prefix.fed(_without_padding(states, batch)):
            fed = _Watched(model, blocks[-1], batch, readers)
        if len(fed.results) == len(expected.results) and all(
            map(_are_close, fed.results, expected.results)
        ):
            return prefix
    raise CannotFeedError("it gives something else when it is fed with their states")


def _beside_blocks(name: str, stack: BlockStack) -> bool:
    return stack.index_of(name) is None and not within(stack.name, name)


def _shape(batch: Mapping[str, Tensor]) -> torch.Size:
    return next(iter(batch.values())).shape[:2]


class _Watched:
    """One call of a model.

    Args:
        model: in evaluation mode.
        boundary: the last block of the prefix.
        batch: as the model takes it.
        readers: modules whose input is kept.

    Attributes:
        before: modules entered before the boundary's output.
        after: modules entered later.
        shapes: of the tensors that modules gave before the boundary's output.
        outputs: of the boundary.
        results: what the readers behind the boundary were given, padding apart, and what the model
            gave. A head that starts at zero would show nothing of what reaches it.
    """

    def __init__(
        self,
        model: nn.Module,
        boundary: nn.Module,
        batch: Mapping[str, Tensor],
        readers: Collection[nn.Module],
    ) -> None:
        self._batch, self._readers = batch, readers
        self.before: list[nn.Module] = []
        self.after: list[nn.Module] = []
        self.shapes: dict[nn.Module, torch.Size] = {}
        self.outputs: list[Any] = []
        self.results: list[Tensor] = []
        hooks: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._enter) for module in model.modules()
        ]
        hooks += [module.register_forward_hook(self._give) for module in model.modules()]
        hooks.append(boundary.register_forward_hook(self._leave))
        try:
            with torch.no_grad():
                self._keep(model(**batch))
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        (self.after if self.outputs else self.before).append(module)
        if self.outputs and args and module in self._readers:
            self._keep(args[0])

    def _give(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.outputs and isinstance(output, Tensor):
            self.shapes[module] = output.shape

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs.append(output)

    def _keep(self, value: Any) -> None:
        value = getattr(value, "logits", value)
        if isinstance(value, Tensor):
            self.results.append(_without_padding(value, self._batch).float())


def _are_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    limit = _TOLERANCE * expected.abs().max().clamp(min=1)
    return bool((found - expected).abs().max() <= limit)
