"""Drawing test rows again, and what training seeds add: what the bootstraps of the room share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

LEVEL = 0.95
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 500

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SeedNoise:
    """What training seeds add to the variance of a mean over them.

    Attributes:
        variance: of the mean, unbiased, ``[...]``; 0 of one seed, which does not show it.
        degrees: of freedom that it is known from, of several seeds their number less one.
        seeds: that the mean is over.
    """

    variance: FloatArray
    degrees: int
    seeds: int

    @classmethod
    def of(cls, by_seed: FloatArray) -> "SeedNoise":
        """Return that of figures ``[seeds, ...]``."""
        seeds = len(by_seed)
        if seeds == 1:
            return cls(np.zeros(by_seed.shape[1:]), 0, 1)
        return cls(np.asarray(by_seed.var(axis=0, ddof=1) / seeds), seeds - 1, seeds)

    def drawn(self, draws: int, generator: np.random.Generator) -> FloatArray:
        """Return normal deviations of the mean, ``[draws, ...]``."""
        shape = (draws, *self.variance.shape)
        deviations: FloatArray = generator.standard_normal(shape) * np.sqrt(self.variance)
        return deviations


def at_least_the_average(noises: Sequence[SeedNoise]) -> list[SeedNoise]:
    """Return noises of which none is below what the seeds of all methods show on average.

    Of many methods with two or three seeds each, some have seeds that agree by chance: what is
    known of one from so few is little, and from all of them more. One seed stays without noise.
    """
    several = [noise for noise in noises if noise.degrees]
    degrees = sum(noise.degrees for noise in several)
    if not degrees:
        return list(noises)
    of_one_run = np.asarray(
        sum(noise.variance * noise.seeds * noise.degrees for noise in several) / degrees
    )
    return [
        noise
        if not noise.degrees or noise.variance >= of_one_run / noise.seeds
        else SeedNoise(of_one_run / noise.seeds, degrees, noise.seeds)
        for noise in noises
    ]


def resampled_means(
    values: FloatArray, pseudo_rows: int, resamples: int, generator: np.random.Generator
) -> FloatArray:
    """Draw rows with replacement; return each method's mean over them, ``[resamples, methods]``.

    Args:
        values: of each row, 0 to 1, ``[methods, n]``: whether a method got it right, or the share
            of its runs that did.
        pseudo_rows: how many rows are added, each right or wrong as a coin falls for each method.
            Their sum is drawn as a normal number of the same mean and variance: coins would give
            methods that agree on nearly all rows a few far differences, and any family of
            comparisons with such a pair a far largest one.
        resamples: how many times rows are drawn.
        generator: of the draws.
    """
    rows = values.shape[1]
    # Rows with the same values are interchangeable, so drawing rows with replacement is one
    # multinomial draw over the few patterns there are.
    patterns, counts = np.unique(values, axis=1, return_counts=True)
    sums = []
    for start in range(0, resamples, _DRAWS_AT_ONCE):  # many patterns would take gigabytes
        size = min(_DRAWS_AT_ONCE, resamples - start)
        sums.append(generator.multinomial(rows, counts / rows, size=size) @ patterns.T)
    right = generator.normal(
        pseudo_rows / 2, (pseudo_rows / 4) ** 0.5, size=(resamples, len(values))
    )
    means: FloatArray = (np.concatenate(sums) + right) / (rows + pseudo_rows)
    return means


def degrees_of_freedom(variance: FloatArray, noises: Sequence[SeedNoise]) -> FloatArray:
    """Return how well a variance is known of which some parts are known from a few seeds only.

    Source: Satterthwaite (1946), "An approximate distribution of estimates of variance components",
    Biometrics Bulletin 2. Rows are so many that their part counts as known; infinite where no part
    is of seeds.

    Args:
        variance: all parts together, ``[...]``.
        noises: the parts that seeds have in it.
    """
    uncertain = sum(
        (noise.variance**2 / noise.degrees for noise in noises if noise.degrees),
        start=np.zeros_like(variance),
    )
    return np.divide(
        variance**2, uncertain, out=np.full_like(variance, np.inf), where=uncertain > 0
    )


def as_normal(statistic: FloatArray, degrees: FloatArray) -> FloatArray:
    """Return what is as far out in a normal distribution as ``statistic`` ≥ 0 is in Student's."""
    equivalent: FloatArray = norm.isf(student.sf(statistic, degrees))
    return equivalent


def interval(
    centre: FloatArray, error: FloatArray, degrees: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the ends of Student's 95 % intervals, given their centres and standard errors."""
    half = student.ppf(0.5 + LEVEL / 2, degrees) * error
    return centre - half, centre + half


def interval_of_share(centre: float, variance: float, noise: SeedNoise) -> list[float]:
    """Return the 95 % interval ``[low, high]`` of a figure that lies between 0 and 1.

    Args:
        centre: of the interval.
        variance: of the figure, that of rows and seeds.
        noise: the part that seeds have in it.
    """
    known = np.asarray(variance)
    low, high = interval(np.asarray(centre), known**0.5, degrees_of_freedom(known, [noise]))
    return [max(float(low), 0.0), min(float(high), 1.0)]
