"""Label cells (strings, ints, bools) as stable names and ids, and the weights of classes."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from deltafit.data.columns import is_number
from deltafit.errors import DeltafitError

# Banking77 has 77 intents, so many classes alone prove nothing; many different numbers do.
_MOST_NUMBERS = 50
# With fewer classes a table of one row each may be honest: a small example.
_FEWEST_DOUBTED = 10
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class LabelSet:
    """The classes in the order of their ids.

    Attributes:
        names: one name per class: integers in numeric order, "false" before "true", strings by
            code point, whatever order the rows came in.
        folded: whether case is ignored (bools: "True", "TRUE" and true are one).
    """

    names: tuple[str, ...]
    folded: bool = False

    def find(self, name: str) -> int | None:
        """Return the id of a label name, or None for one that is not known."""
        name = name.casefold() if self.folded else name
        return self._ids.get(name)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def label_name(cell: object) -> str | None:
    """Return the name that a cell gives, or None where it gives none.

    Strings lose outer whitespace; ints and bools are written as "3" and "true".

    Raises:
        TypeError: the cell is a list or an object.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, str):
        return cell.strip() or None
    if isinstance(cell, int | float):
        return str(cell)
    raise TypeError(type(cell).__name__)


def label_set(names: Iterable[str]) -> LabelSet:
    """Return the classes that label names form, in stable order.

    >>> label_set(["10", "9", "10"]).names
    ('9', '10')
    """
    distinct = set(names)
    if distinct and all(_INTEGER.fullmatch(name) for name in distinct):
        return LabelSet(tuple(sorted(distinct, key=int)))
    folded = {name.casefold() for name in distinct}
    if folded <= {"false", "true"}:
        return LabelSet(tuple(sorted(folded)), folded=True)
    return LabelSet(tuple(sorted(distinct)))


def check_classes(names: Sequence[str], place: str) -> None:
    """Refuse a column of measurements or free text, one class only, or one in two notations.

    Continuous are: mostly numbers with a fractional notation among them; ten different values or
    more of any kind in less than twice as many rows; and mostly numbers with ten different values
    or more in less than three times as many rows, or with more than 50, unless they count classes
    from 0 or 1 without a gap. Notations of one class are those that differ by enclosing quotes,
    and spellings of true and false that `label_set` would keep apart.

    Args:
        names: the label name of every row.
        place: file and column, for the message.

    Raises:
        DeltafitError: the column cannot be a label column.
    """
    counts = Counter(names)
    problem = _continuous(counts, len(names)) or _two_notations(counts)
    if problem:
        raise DeltafitError(f"{place}: {problem}")
    if len(label_set(counts).names) == 1:
        raise DeltafitError(
            f"{place}: all {len(names):,} rows have the label {names[0]!r}. A classifier needs at "
            "least two classes."
        )


def _continuous(counts: Counter[str], rows: int) -> str | None:
    numbers = [name for name in counts if is_number(name)]
    signed = {name: name.removeprefix("+") for name in numbers}
    fractions = [n for n, s in signed.items() if not _INTEGER.fullmatch(s) and not s.isdigit()]
    mostly_numbers = 2 * sum(counts[name] for name in numbers) > rows
    if mostly_numbers and fractions:
        values = {name: float(name.replace(",", ".")) for name in numbers}
        if all(value.is_integer() for value in values.values()):
            return (
                f"the labels are decimal numbers such as {fractions[0]}. If they count classes, "
                f"write them without the decimal part ({values[fractions[0]]:.0f})."
            )
        return (
            f"the labels are continuous numbers such as {fractions[0]} ({len(counts):,} different "
            "values). A classifier needs classes: group the numbers, or choose another column."
        )
    if len(counts) < _FEWEST_DOUBTED:
        return None
    many = len(counts) > _MOST_NUMBERS or 3 * len(counts) > rows
    if 2 * len(counts) > rows or (mostly_numbers and many and not _counts_classes(counts)):
        kind = "continuous numbers" if mostly_numbers else "free text"
        return (
            f"{len(counts):,} different labels in {rows:,} rows look like {kind}, not classes. "
            "Group them, or choose another column."
        )
    return None


def _two_notations(counts: Counter[str]) -> str | None:
    if label_set(counts).folded:
        return None
    differences: tuple[tuple[Callable[[str], str], str], ...] = (
        (_unquoted, "differ only by quotation marks"),
        (_boolean, "are one truth value in different notations"),
    )
    for notation_free, difference in differences:
        alike: dict[str, list[str]] = defaultdict(list)
        for name in sorted(counts):
            alike[notation_free(name)].append(name)
        for group in alike.values():
            if len(group) > 1:
                listed = ", ".join(f"{name!r} (rows: {counts[name]:,})" for name in group)
                return f"the labels {listed} {difference}. Write them alike."
    return None


def _unquoted(name: str) -> str:
    enclosed = len(name) > 2 and name[0] == name[-1] and name[0] in "\"'"
    return name[1:-1].strip() if enclosed else name


def _boolean(name: str) -> str:
    folded = name.casefold()
    if folded in ("true", "false"):
        return folded
    return {"1": "true", "0": "false"}.get(name, name)


def _counts_classes(names: Iterable[str]) -> bool:
    """Say whether the labels are 0 … K-1 or 1 … K, as class ids are and measurements are not."""
    distinct = set(names)
    if not all(_INTEGER.fullmatch(name) for name in distinct):
        return False
    values = sorted(int(name) for name in distinct)
    return values[0] in (0, 1) and values[-1] - values[0] + 1 == len(values)


def class_weights(labels: Sequence[int], num_labels: int) -> tuple[float, ...]:
    """Return the weight of every class, n / (num_labels · count), so that classes weigh alike.

    This is scikit-learn's "balanced" weighting; its mean over the rows is 1.

    Raises:
        DeltafitError: a class has no rows.
    """
    counts = Counter(labels)
    empty = [index for index in range(num_labels) if not counts[index]]
    if empty:
        raise DeltafitError(
            f"Class weights need every class in the training rows; class {empty[0]} has none."
        )
    return tuple(len(labels) / (num_labels * counts[index]) for index in range(num_labels))
