"""What is known of the layers to adapt, for methods that look before they start."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import view_of
from deltafit.adapters.quantised import QuantisedLinear
from deltafit.errors import DeltafitError
from deltafit.methods import DeltaMethod, Layer, Method
from deltafit.methods.base import Tensors
from deltafit.methods.delta import corrects_rounding

Statistics = Mapping[str, Tensors]
"""What ``DeltaMethod.statistic`` names, by the names of modules."""


def informed(method: Method, targets: Mapping[str, nn.Module], statistics: Statistics) -> Method:
    """Return the method with what data decides for all of its layers together.

    Args:
        method: any; those that do not look at data come back as they are.
        targets: the modules to adapt, by name.
        statistics: of each of them; of rounding, of those that are quantised.

    Raises:
        DeltafitError: the method needs to know something that ``statistics`` does not hold.
    """
    if not isinstance(method, DeltaMethod) or (wanted := method.statistic()) is None:
        return method
    if wanted == "rounding":
        quantised = [n for n, module in targets.items() if isinstance(module, QuantisedLinear)]
        check_rounded(method, quantised)
        targets = {name: targets[name] for name in quantised}
    missing = [target for target in targets if target not in statistics]
    if missing:
        more = f" (nor of {len(missing) - 1} more)" if len(missing) > 1 else ""
        if wanted == "rounding":
            raise DeltafitError(
                f"{method} starts from what rounding took from each weight, and of {missing[0]!r} "
                f"that is not known{more}: give adapt(..., statistics=...) what quantise(..., "
                "errors_of=...) returned for it."
            )
        raise DeltafitError(
            f"{method} starts from what data says of each layer ({wanted}), and of {missing[0]!r} "
            f"nothing is known{more}: no text was shown, or none runs through it. Training looks "
            "at texts by itself; give adapt(..., statistics=...) in a loop of your own, and leave "
            "out modules that are not used."
        )
    return method.informed({target: statistics[target] for target in targets})


def check_rounded(method: Method, quantised: Collection[str]) -> None:
    """Raise a DeltafitError if a method makes up for rounding, and no target was rounded.

    Args:
        method: any.
        quantised: names of the targets whose weights are stored in few bits.
    """
    if corrects_rounding(method) and not quantised:
        raise DeltafitError(
            f"{method} starts from what storing weights in few bits takes from them, and none of "
            "its targets is stored so: there is nothing to make up for. Store the base's weights "
            "in int8 or nf4, choose targets among the linear layers of its blocks, or start "
            "otherwise."
        )


def check_statistic(method: DeltaMethod, name: str, layer: Layer) -> None:
    """Raise a DeltafitError if a layer has not what the method wants to know of it."""
    if method.statistic() == "inputs" and layer.lookup:
        raise DeltafitError(
            f"{name} is an embedding: its inputs are tokens, which have no directions that "
            f"{method} could start from. Leave it out of the targets, or start at random."
        )


class _Moments:
    """Sums over the inputs of one layer, float64 ``[rows, inputs]``."""

    def __init__(self) -> None:
        self.count, self.sum, self.products = 0, torch.empty(0), torch.empty(0)

    def add(self, rows: Tensor) -> None:
        if not self.count:
            self.sum = rows.new_zeros(rows.shape[1])
            self.products = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    def statistic(self) -> dict[str, Tensor]:
        sums = {"mean": self.sum, "second_moment": self.products}
        return {name: (tensor / self.count).cpu() for name, tensor in sums.items()}


@contextmanager
def input_moments(
    model: nn.Module, names: Collection[str]
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Collect mean and second moment of what named modules are called with in the block.

    What is yielded is filled when the block ends, with the modules that were called. Every position
    counts once, so inputs should be without padding. A convolution's inputs are what lies under its
    kernel wherever it goes, in each group of its channels.
    """
    moments: dict[str, _Moments] = {}
    statistics: dict[str, dict[str, Tensor]] = {}

    def look(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        rows = view_of(module).products(x.detach().double())
        moments.setdefault(name, _Moments()).add(rows)

    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(
                partial(look, name), with_kwargs=True
            )
            stack.callback(hook.remove)
        yield statistics
    statistics.update({name: of_layer.statistic() for name, of_layer in moments.items()})
