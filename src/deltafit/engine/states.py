"""Hidden states of many texts, without padding: in memory, or in a file that is mapped into it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 24  # bytes


class StateStore:
    """One hidden state for every token of every row, float32.

    Args:
        lengths: tokens of each row.
        width: of a state.
        memory_limit: bytes; what is larger goes into a file of ``folder``, which has no name and
            is gone with the process, however that ends.
        folder: for that file.

    Raises:
        OSError: the disk has no room for the file.
    """

    def __init__(
        self, lengths: Sequence[int], width: int, *, memory_limit: int, folder: Path
    ) -> None:
        self._lengths = list(lengths)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)]).tolist()
        self._width = width
        shape = (self._starts[-1], width)
        self.bytes = 4 * shape[0] * width
        self.in_memory = self.bytes <= memory_limit
        self._states = torch.empty(shape) if self.in_memory else _mapped(shape, folder)

    def put(self, rows: Sequence[int], states: Tensor) -> None:
        """Keep the states of rows, ``[rows, length, width]``, padded on the right."""
        for row, state in zip(rows, states.cpu(), strict=True):
            start, end = self._starts[row], self._starts[row + 1]
            self._states[start:end] = state[: end - start]

    def get(self, rows: Sequence[int]) -> Tensor:
        """Return the states of rows, ``[rows, longest, width]``, zeros where there is no token."""
        longest = max(self._lengths[row] for row in rows)
        result = torch.zeros(len(rows), longest, self._width)
        for place, row in enumerate(rows):
            start, end = self._starts[row], self._starts[row + 1]
            result[place, : end - start] = self._states[start:end]
        return result


def _mapped(shape: tuple[int, int], folder: Path) -> Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Written, not only sized: a full disk is an error here, and would kill the process later.
        zeros = bytes(_CHUNK)
        for start in range(0, 4 * shape[0] * shape[1], _CHUNK):
            file.write(zeros[: 4 * shape[0] * shape[1] - start])
        file.flush()
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))
