"""Many adapters in one pass: each row of a batch goes through its own, around one base."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltafit.adapters.layers import is_adapted
from deltafit.adapters.model import model_adapters, moved_like, refuse_merged
from deltafit.adapters.structure import main_stack, within
from deltafit.engine.calls import replaced_forward
from deltafit.engine.layout import find_layout
from deltafit.engine.mixed_modules import MixedModule, Parameters, Pass
from deltafit.engine.relative import is_of_bias
from deltafit.errors import DeltafitError
from deltafit.methods import LayerMethod

_CHECKPOINT = "_gradient_checkpointing_func"

Segment = tuple[str | None, int]


@contextmanager
def mixed(model: nn.Module, segments: Sequence[Segment]) -> Iterator[None]:
    """Let the rows of a batch go through different adapters in one pass.

    The first segment's rows come first, the second's behind them, and so on. The base's product of
    an adapted layer is computed once for all rows, and each segment adds its own adapter's update,
    so each row gets what it would get with that adapter active, up to rounding. Modules that an
    adapter trained whole, its head among them, run once a segment. Logits are as wide as those of
    the most labels, ``logits[row, :labels]`` counts, and what is behind is -inf; a loss that the
    model computes itself knows nothing of that.

    It works in ``packed`` and in training: whatever requires a gradient gets the one it would get
    alone, once (no second derivatives on a sheet). The backward pass of gradient checkpointing
    belongs inside the context. Within it no adapter is added, removed or activated. Layers must be
    given the batch's rows first, ``[rows, ...]`` or ``[rows · length, ...]``, or a sheet.

    Args:
        model: with adapters; which is active, and what requires a gradient, stays as it is.
        segments: the adapter's name, or None for the base alone, and the number of rows, for each
            part of the batch.

    Raises:
        DeltafitError: there is no such adapter, one is merged, the base's values are gone, a
            segment is empty, or an adapter cannot be mixed; later, from a call of the model, that
            its batch has another number of rows.
    """
    mixture = _Mixture(model, _checked(model, segments))
    only = segments[0][0] if len({adapter for adapter, _ in segments}) == 1 else None
    with ExitStack() as stack:
        for module in mixture.modules:
            if module.state is not None:  # what hooks around the module go by
                stack.enter_context(module.state.switched(only))
            stack.enter_context(replaced_forward(module.module, module.forward))
        for hook in mixture.hooks():
            stack.callback(hook.remove)
        stack.enter_context(mixture.layouts_recomputed())
        yield


def _checked(model: nn.Module, segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments, neighbours of one adapter as one."""
    state = model_adapters(model)
    unknown = [repr(a) for a, _ in segments if a is not None and a not in state.adapters]
    if unknown:
        known = ", ".join(state.adapters) or "none"
        raise DeltafitError(f"The model has no adapter {' or '.join(unknown)}; it has {known}.")
    refuse_merged(model)
    if not segments:
        raise DeltafitError("A batch of several adapters needs at least one segment of rows.")
    for adapter, count in segments:
        if count < 1:
            raise DeltafitError(
                f"The segment of {_named(adapter)} has {count} rows. Leave it out, or give it one."
            )
    if any(_is_mixed(module) for module in model.modules()):
        raise DeltafitError("The model runs several adapters already: leave that mixed(...) first.")
    used = dict.fromkeys(adapter for adapter, _ in segments)
    for adapter in used:
        method = state.adapters[adapter].method if adapter is not None else None
        if len(used) > 1 and isinstance(method, LayerMethod) and method.apart:
            raise DeltafitError(
                f"The adapter {adapter!r} ({method.command_line_name}) {method.apart}, so it "
                "cannot share one with others. Run it by itself."
            )
    for adapter in used:
        own = state.adapters[adapter].replaced if adapter is not None else {}
        lost = state.base_lost - set(own)
        if lost:
            raise DeltafitError(
                f"The base's own values of {min(lost)!r} and {len(lost) - 1} more were trained in "
                f"place and not kept, so {_named(adapter)} cannot run. Load the base again, or "
                "adapt with keep_base=True."
            )
    return [
        (adapter, sum(count for _, count in neighbours))
        for adapter, neighbours in groupby(segments, key=lambda segment: segment[0])
    ]


def _named(adapter: str | None) -> str:
    return "the base alone" if adapter is None else repr(adapter)


def _is_mixed(module: nn.Module) -> bool:
    return isinstance(getattr(module.__dict__.get("forward"), "__self__", None), MixedModule)


class _Mixture:
    """The modules of a model that run otherwise while it is mixed, and the hooks around them."""

    def __init__(self, model: nn.Module, segments: Sequence[Segment]) -> None:
        self.model, self.segments = model, segments
        adapters, counts = zip(*segments, strict=True)
        self.now = Pass(adapters, counts)
        try:
            self._blocks: tuple[str, ...] = main_stack(model).blocks
        except DeltafitError:
            self._blocks = ()
        self.modules = self._mixed_modules()

    def _mixed_modules(self) -> list[MixedModule]:
        state = model_adapters(self.model)
        standing = {id(self.model.get_parameter(name)): name for name in state.base}
        found = []
        for name, module in self.model.named_modules():
            places = {
                leaf: standing[id(parameter)]
                for leaf, parameter in module._parameters.items()
                if id(parameter) in standing
            }
            if not places and not is_adapted(module):
                continue
            parameters: dict[str | None, Parameters] = {}
            for adapter in self.now.adapters:
                own = state.adapters[adapter].replaced if adapter is not None else {}
                parameters[adapter] = {
                    leaf: moved_like(own.get(place, state.base[place]), module._parameters[leaf])
                    for leaf, place in places.items()
                }
            mixed_module = MixedModule(self.now, name, module, parameters)
            if is_adapted(module) or mixed_module.changes:
                self._refuse_around_blocks(mixed_module)
                self._refuse_positions(mixed_module)
                found.append(mixed_module)
        return found

    def _refuse_around_blocks(self, mixed_module: MixedModule) -> None:
        name = mixed_module.name
        # A block's forward is what gradient checkpointing runs again, past all that is done here.
        around = any(within(block, name) for block in self._blocks)
        if around and not mixed_module.alike:
            raise DeltafitError(
                f"{', '.join(mixed_module.leaves)} of {name or 'the model itself'} is trained "
                "whole, and that module is or holds one of the blocks, so the adapters cannot "
                "share one pass. Run each adapter by itself."
            )

    def _refuse_positions(self, mixed_module: MixedModule) -> None:
        differs = bool(mixed_module.here) or not mixed_module.alike
        if differs and len(self.now.adapters) > 1 and is_of_bias(self.model, mixed_module.name):
            raise DeltafitError(
                f"{mixed_module.name} is given relative positions, the same for all rows, so the "
                "adapters cannot share one pass. Run each adapter by itself."
            )

    def hooks(self) -> Iterator[RemovableHandle]:
        """Register the hooks that tell which batch and which sheet runs; yield each."""
        yield self.model.register_forward_pre_hook(self._check_rows, with_kwargs=True)
        yield self.model.register_forward_hook(self._check_calls)
        for name in self._blocks:
            block = self.model.get_submodule(name)
            yield block.register_forward_pre_hook(self._enter_block, with_kwargs=True)
            # Gradient checkpointing may leave a block by an exception when it knows enough.
            yield block.register_forward_hook(self._leave_block, always_call=True)

    def _enter_block(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self.now.layout = find_layout(args, kwargs)

    def _leave_block(self, block: nn.Module, args: Any, output: Any) -> None:
        self.now.layout = None

    @contextmanager
    def layouts_recomputed(self) -> Iterator[None]:
        """Let what gradient checkpointing runs again have the layout of its batch.

        transformers may checkpoint a block's forward, past its hooks, by a function that it keeps
        in the block.
        """
        kept = {}
        for name in self._blocks:
            block = self.model.get_submodule(name)
            if _CHECKPOINT in block.__dict__:
                kept[block] = block.__dict__[_CHECKPOINT]
                block.__dict__[_CHECKPOINT] = partial(self._checkpoint, kept[block])
        try:
            yield
        finally:
            for block, checkpoint in kept.items():
                block.__dict__[_CHECKPOINT] = checkpoint

    def _checkpoint(self, checkpoint: Callable[..., Any], forward: Any, *args: Any) -> Any:
        layout = self.now.layout

        def on_its_sheet(*args: Any) -> Any:
            with self.now.on(layout):
                return forward(*args)

        return checkpoint(on_its_sheet, *args)

    def _check_rows(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        named = [kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        given = [v for v in (*named, *args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim]
        rows = self.now.divisions.rows
        if given and len(given[0]) != rows:
            parts = ", ".join(f"{_named(adapter)}: {count}" for adapter, count in self.segments)
            raise DeltafitError(
                f"The batch has {len(given[0])} rows, and the segments have {rows} ({parts})."
            )
        for module in self.modules:
            module.called = False

    def _check_calls(self, model: nn.Module, args: Any, output: Any) -> None:
        for module in self.modules:
            if not module.called and module.differs:
                raise DeltafitError(
                    f"{', '.join(module.leaves)} of {module.name} is trained whole, and the model "
                    "reads it without calling that module, so the adapters cannot share one pass. "
                    "Run each adapter by itself."
                )
