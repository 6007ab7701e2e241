"""Labels, and what runs of some accuracy said of them."""

import numpy as np

NAMES = tuple("abcde")


def drawn(seeds: int = 3, count: int = 300, accuracy: float = 0.8, seed: int = 0) -> np.ndarray:
    """Labels ``[count]``, and under them what ``seeds`` runs said of them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(NAMES), size=count)
    others = generator.integers(0, len(NAMES), size=(seeds, count))
    right = generator.random((seeds, count)) < accuracy
    return np.vstack([labels, np.where(right, labels, others)])
