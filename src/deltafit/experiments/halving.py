"""Successive halving: Jamieson and Talwalkar, 2016 (arXiv:1502.07943), trial by trial.

So Li et al., 2020 (arXiv:1810.05934), do it, and Optuna's pruner. That one cannot forget a trial
that failed, so its good beginning might prune all others.
"""

from collections.abc import Sequence


class Halving:
    """The rungs of a search: evaluations 1, 2, 4, 8 … of its trials.

    A trial goes on beyond a rung if it is in the better half of those that came there so far.
    """

    def __init__(self) -> None:
        self._rungs: dict[int, list[float]] = {}

    def ends(self, number: int, value: float) -> bool:
        """Say whether a trial ends with an evaluation, 1 the first; the greater value is better."""
        if number.bit_count() > 1:
            return False
        came = sorted([*self._rungs.get(number, []), value], reverse=True)
        return value < came[max(len(came) // 2, 1) - 1]

    def enter(self, values: Sequence[float]) -> None:
        """Let a trial compete with later ones by the evaluations that it was asked about."""
        for number, value in enumerate(values, start=1):
            self._rungs.setdefault(number, []).append(value)
