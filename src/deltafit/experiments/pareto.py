"""Which methods nothing else beats at less cost."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the front, the cheapest first.

    A point is on it unless another costs no more and results in no less, and is better in one of
    the two. Equal points are on it together. Figures alone decide, noise has no say.

    Args:
        points: ``(cost, result)`` each.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, result = points[index]
        best_cost, best = points[front[-1]] if front else (cost, -float("inf"))
        if result > best or (cost, result) == (best_cost, best):
            front.append(index)
    return front
