"""Whether two ways of running a model gave the same: outputs and gradients, up to rounding."""

import torch
from torch import Tensor

# Of a tensor's largest value, in float32. Rounding stays far below (2e-5 in the gradients of all of
# SmolLM2's 30 layers); mistakes in positions, masks or the order of rows lie far above.
_TOLERANCE = 1e-4
# A gradient that is zero but for rounding (that of a key's bias) is judged by this much of the
# largest gradient instead of by itself.
_LEAST_GRADIENT = 1e-2

Results = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Outputs by what they are, and gradients by what they are of."""


def first_difference(expected: Results, found: Results) -> str | None:
    """Return the first thing that differs beyond float32's rounding, and by how much."""
    outputs, slopes = expected
    largest = max((float(g.abs().max()) for g in slopes.values()), default=0.0)
    floors = dict.fromkeys(outputs, 0.0) | dict.fromkeys(slopes, _LEAST_GRADIENT * largest)
    results = found[0] | found[1]
    for name, value in (outputs | slopes).items():
        # What has no gradient at all differs too.
        result = results.get(name, torch.full_like(value, torch.nan))
        difference = _difference(value, result, floors[name])
        if not difference <= _TOLERANCE:  # so that NaN is found
            return f"{name} differs by {difference:.1g} of its size"
    return None


def _difference(expected: Tensor, found: Tensor, floor: float) -> float:
    """Return the largest difference as a share of the largest value, or of ``floor``."""
    size = max(float(expected.abs().max()), floor)
    difference = float((expected - found).abs().max())
    return difference / size if size else difference
