"""Methods made to train about as many parameters as each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from torch import nn

from deltafit.adapters import trained_values
from deltafit.errors import UsageError
from deltafit.experiments.tables import format_count
from deltafit.methods import Method
from deltafit.tasks.positions import usable_length

_LARGEST = 2**16  # that is looked at


@dataclass(frozen=True)
class Sized:
    """A method of a comparison under a budget.

    Attributes:
        method: with the size that comes nearest to the budget, if it has one.
        note: how many parameters it trains, in a sentence for its row.
    """

    method: Method
    note: str


def sized_to(
    budget: int, methods: Sequence[Method], model: nn.Module, head: Sequence[str]
) -> list[Sized]:
    """Give every method the size with which it trains about ``budget`` parameters.

    The head is not counted: all methods train the same one. A method without a size keeps what it
    trains, and its note says so.

    Args:
        budget: how many parameters.
        methods: what is compared.
        model: its structure; the meta device will do.
        head: names of the parameters that make up the head.

    Raises:
        DeltafitError: a method does not fit the model.
        UsageError: a method trains more than twice the budget at its smallest size.
    """
    return [_sized(budget, method, model, head) for method in methods]


def _sized(budget: int, method: Method, model: nn.Module, head: Sequence[str]) -> Sized:
    def count(size: int) -> int:
        return trained_values(model, method.with_size(size), head=head)

    if method.size_setting is None:
        own = trained_values(model, method, head=head)
        return Sized(
            method,
            f"has no size to choose: it trains {format_count(own)} parameters besides the head, "
            f"under a budget of {format_count(budget)}",
        )

    def setting(size: int) -> str:
        return f"{method.size_setting}={getattr(method.with_size(size), str(method.size_setting))}"

    least = count(1)
    if least > 2 * budget:
        places = [f.name for f in fields(method) if f.name in ("target_modules", "layers")]
        fewer = f", or choose fewer {' or '.join(places)}" if places else ""
        raise UsageError(
            f"{method} trains {format_count(least)} parameters with {setting(1)} already, more "
            f"than twice the budget of {format_count(budget)}. Raise the budget{fewer}."
        )
    largest = _largest(method, model)
    size = _nearest(budget, count, largest)
    why = f"comes nearest to the budget of {format_count(budget)}"
    if size == largest < _LARGEST and count(size) < budget:
        why = f"leaves texts half of the positions, so it stays below {format_count(budget)}"
    return Sized(
        method.with_size(size),
        f"{setting(size)} {why}: {format_count(count(size))} parameters besides the head",
    )


def _largest(method: Method, model: nn.Module) -> int:
    """Return the largest size to choose: where it takes positions, texts keep half of them."""
    if not method.with_size(1).taken_positions:
        return _LARGEST
    return max(1, usable_length(model, _LARGEST) // 2)


def _nearest(budget: int, count: Callable[[int], int], largest: int) -> int:
    """Return the size whose count, which never falls as the size rises, is nearest to the budget.

    A count may stay for a while before it rises (Sparse's, of one entry a layer), or stop to rise
    below the budget (LoKr's, once its small matrices are whole); then it is the smallest that
    trains as many. (LoKr's falls a little where they become so: a size near there may be nearer.)
    """
    high = 1
    while count(high) < budget and high < largest:
        high = min(2 * high, largest)
    enough, low = min(budget, count(high)), 0
    while high - low > 1:  # of too few, and of enough
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < enough else (low, middle)
    return high if low < 1 or count(high) - budget < budget - count(low) else low
