"""What passes of texts cost: a law fitted to some that were timed, for all that were not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

Work = tuple[float, float, float]
"""What there is to compute at a time: once, tokens, and the squares of the texts' lengths."""

NO_WORK: Work = (0.0, 0.0, 0.0)


def work_of(passes: Iterable[Sequence[int]], *, packed: bool) -> Work:
    """Return the work of what is timed at once.

    Args:
        passes: the lengths of the texts in each forward pass.
        packed: whether padding costs nothing.
    """
    tokens = squares = 0
    for lengths in passes:
        own = lengths if packed else [max(lengths)] * len(lengths)
        tokens += sum(own)
        squares += sum(length * length for length in own)
    return (1.0, float(tokens), float(squares))


def added(works: Iterable[Work]) -> Work:
    """Return the sum of works."""
    once, tokens, squares = NO_WORK
    for work in works:
        once, tokens, squares = once + work[0], tokens + work[1], squares + work[2]
    return once, tokens, squares


@dataclass(frozen=True)
class Span:
    """Seconds that something takes.

    Attributes:
        seconds: the likeliest.
        low: if all of it went as the quickest of what was timed.
        high: if all of it went as the slowest.
    """

    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: "Span") -> "Span":
        low, high = self.low + other.low, self.high + other.high
        return Span(self.seconds + other.seconds, low, high)

    def times(self, count: float) -> "Span":
        """Return so many of it."""
        return Span(self.seconds * count, self.low * count, self.high * count)


def exactly(seconds: float) -> Span:
    """Return what was measured as it will be again, and has no spread."""
    return Span(seconds, seconds, seconds)


def total(spans: Iterable[Span]) -> Span:
    """Return the sum of spans."""
    return sum(spans, Span())


@dataclass(frozen=True)
class CostLaw:
    """Seconds = a + b·tokens + c·(squares of lengths), none of them negative.

    Attributes:
        coefficients: a, b and c.
        quickest: the smallest of the timed seconds divided by what the law gives.
        slowest: the largest.
    """

    coefficients: Work
    quickest: float = 1.0
    slowest: float = 1.0

    @classmethod
    def fitted(cls, works: Sequence[Work], seconds: Sequence[float]) -> "CostLaw":
        """Return the law of timed works: least squares, scaled to give their sum.

        Args:
            works: at least one.
            seconds: that each took.
        """
        rows, times = np.array(works), np.array(seconds)
        sizes = rows.mean(axis=0)
        sizes[sizes == 0] = 1.0
        solution, _ = nnls(rows / sizes, times)
        given = (rows / sizes) @ solution
        if given.sum() > 0:  # else a clock too coarse to see anything
            solution *= times.sum() / given.sum()
            given *= times.sum() / given.sum()
        ratios = times[given > 0] / given[given > 0]
        a, b, c = map(float, solution / sizes)
        if not len(ratios):
            return cls((a, b, c))
        return cls((a, b, c), float(ratios.min()), float(ratios.max()))

    def of(self, work: Work) -> Span:
        """Return what some work takes; that of many passes is the sum of theirs."""
        seconds = sum(a * b for a, b in zip(self.coefficients, work, strict=True))
        return Span(seconds, seconds * self.quickest, seconds * self.slowest)
