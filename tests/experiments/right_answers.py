"""Which rows methods got right: two of them by hand, and runs drawn again and again."""

import numpy as np


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    order = np.random.default_rng(0).permutation(len(a))
    return np.array(a)[order], np.array(b)[order]


def runs_of_one_method(
    generator: np.random.Generator, between: float, runs: int, rows: int = 300
) -> np.ndarray:
    """Right answers ``[runs, rows]``; rows differ in ease, seeds by ``between``."""
    ease = generator.normal(1.5, 1.5, size=rows)
    shift = generator.normal(0, between, size=(runs, 1))
    return ease + shift + generator.normal(0, 0.5, size=(runs, rows)) > 0
