"""The modules that run otherwise in a pass of several adapters."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import LayerState, is_adapted, layer_state
from deltafit.engine.calls import replaced_forward
from deltafit.engine.division import Division, Divisions
from deltafit.engine.layout import CannotPackError, Layout, find_layout
from deltafit.errors import DeltafitError
from deltafit.methods import LayerMethod

Parameters = dict[str, nn.Parameter]  # of one module, by their names in it
_Own = tuple[LayerMethod, Mapping[str, Tensor]]  # of one adapter in one layer


class Pass:
    """What the modules of one mixed model share.

    Attributes:
        adapters: of the segments, in their order; one alone while a module runs for its rows.
        divisions: how a batch falls to the segments.
        layout: of the sheet that the block now running works on; None outside, and if padded.
    """

    def __init__(self, adapters: tuple[str | None, ...], counts: tuple[int, ...]) -> None:
        self.adapters, self.divisions = adapters, Divisions(counts)
        self.layout: Layout | None = None

    @contextmanager
    def on(self, layout: Layout | None) -> Iterator[None]:
        """Let layers work on the sheet of this layout."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    @contextmanager
    def narrowed(self, adapter: str | None) -> Iterator[None]:
        """Let modules inside of another run for one adapter's rows alone."""
        before, self.adapters = self.adapters, (adapter,)
        try:
            yield
        finally:
            self.adapters = before


class MixedModule:
    """A module that carries adapters, or parameters that adapters replace.

    Args:
        now: the pass.
        name: the module's.
        module: itself.
        parameters: adapter → those of the module's own parameters that some adapter replaces, as
            this adapter has them.

    Attributes:
        alike: whether all adapters have the very same parameters there.
        called: whether the module ran in this pass.
    """

    def __init__(
        self,
        now: Pass,
        name: str,
        module: nn.Module,
        parameters: Mapping[str | None, Parameters],
    ) -> None:
        self.now, self.name, self.module, self.parameters = now, name, module, parameters
        self.state = layer_state(module) if is_adapted(module) else None
        self.leaves = tuple(next(iter(parameters.values())))
        sets = {tuple(id(own[leaf]) for leaf in self.leaves) for own in parameters.values()}
        self.alike = len(sets) == 1
        self.called = False
        self._original = module.forward

    @property
    def here(self) -> tuple[str, ...]:
        """Those adapters of the pass that sit here."""
        methods = {} if self.state is None else self.state.methods
        return tuple(a for a in self.now.adapters if a is not None and a in methods)

    @property
    def changes(self) -> bool:
        """Whether some adapter has other parameters than those that stand in the module."""
        return any(
            parameter is not self.module._parameters[leaf]
            for own in self.parameters.values()
            for leaf, parameter in own.items()
        )

    @property
    def differs(self) -> bool:
        """Whether the adapters' parameters have different values."""
        first, *others = self.parameters.values()
        return any(
            not torch.equal(other[leaf], first[leaf]) for other in others for leaf in self.leaves
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what each segment's adapter makes of its rows."""
        self.called = True
        adapters, state = self.now.adapters, self.state
        with replaced_forward(self.module, None):
            if len(adapters) == 1:
                return self._under(adapters[0], args, kwargs)
            here = self.here
            if not here:
                state = None  # the adapters that sit here take no part in the pass
            if not self.alike or (
                state is not None and (not state.view.plain or any(map(state.runs_changed, here)))
            ):
                return self._each(args, kwargs)
            if state is None:
                return self._under(adapters[0], args, kwargs)
            with self._standing(adapters[0]):
                return self._around_one_base(state, args, kwargs)

    def _under(self, adapter: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the module as it runs when ``adapter`` is active."""
        layer = nullcontext() if self.state is None else self.state.switched(adapter)
        with layer, self._standing(adapter):
            return self._original(*args, **kwargs)

    @contextmanager
    def _standing(self, adapter: str | None) -> Iterator[None]:
        """Put the adapter's parameters in their places."""
        before = {leaf: self.module._parameters[leaf] for leaf in self.leaves}
        self.module._parameters.update(self.parameters[adapter])
        try:
            yield
        finally:
            self.module._parameters.update(before)

    def _division_of(self, tensor: Tensor) -> Division:
        """Return how what the module is called with falls to the segments."""
        layout = self.now.layout
        if self.state is not None and self.state.view.convolution:
            if layout is not None:
                raise CannotPackError(
                    f"{self.name} is a convolution, whose channels stand before a sheet's tokens, "
                    "so these cannot be told apart by adapter. Leave packed(model) to mix these "
                    "adapters."
                )
            if tensor.ndim < self.state.view.parameter("weight").ndim:
                raise DeltafitError(
                    f"{self.name} is a convolution and was given a tensor of shape "
                    f"{list(tensor.shape)}, which has no rows that could be told apart by adapter."
                )
        return self.now.divisions.of(tensor, layout)

    def _around_one_base(
        self, state: LayerState, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run the base once, and each segment's update around it."""
        own = [
            (state.methods[adapter], state.all_tensors(adapter))
            if adapter is not None and adapter in state.methods
            else None
            for adapter in self.now.adapters
        ]
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        with state.switched(None):
            division = self._division_of(x)
            x = division.ordered(x)
            inputs = division.cut(x)
            outputs = self._of_base(state, own, x, inputs, division)
        return division.join(
            [
                y_part if one is None else one[0].post(state.view, x_part, y_part, one[1])
                for one, x_part, y_part in zip(own, inputs, outputs, strict=True)
            ]
        )

    def _of_base(
        self,
        state: LayerState,
        own: Sequence[_Own | None],
        x: Tensor,
        inputs: Sequence[Tensor],
        division: Division,
    ) -> Sequence[Tensor]:
        """Return what the base gives for each segment's part of ``x``, as its method changes it."""
        given = [
            part if one is None else one[0].pre(state.view, part, one[1])
            for one, part in zip(own, inputs, strict=True)
        ]
        if all(new is part for new, part in zip(given, inputs, strict=True)):
            return division.cut(self._original(x))
        if division.one_for_all:
            return [self._original(part) for part in given]
        return division.cut(self._original(torch.cat(given)))

    def _each(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Run the module once a segment."""
        if find_layout(args, kwargs) is not None:
            raise CannotPackError(
                f"{self.name} is trained whole and reads how the batch is packed, so it cannot run "
                "for one adapter's rows. Leave packed(model) to mix these adapters."
            )
        values = [*args, *kwargs.values()]
        divisions = [
            self._division_of(value) if isinstance(value, Tensor) and value.ndim else None
            for value in values
        ]
        split = [
            [value] * len(self.now.adapters)
            if division is None
            else division.cut(division.ordered(value))
            for value, division in zip(values, divisions, strict=True)
        ]
        parts = []
        for adapter, own in zip(self.now.adapters, zip(*split, strict=True), strict=True):
            named = dict(zip(kwargs, own[len(args) :], strict=True))
            with self.now.narrowed(adapter):
                parts.append(self._under(adapter, own[: len(args)], named))
        if not all(isinstance(part, Tensor) for part in parts):
            raise DeltafitError(
                f"{self.name} is trained whole and gives a {type(parts[0]).__name__} and no single "
                "tensor, so the adapters cannot share one pass. Run each adapter by itself."
            )
        # What one row gives for all has the shape of the others only if there are no others.
        made = sorted((d for d in divisions if d is not None), key=lambda d: d.one_for_all)
        return made[0].join(parts)
