"""Hidden states of many texts, without padding: in memory, or in a file that is mapped into it."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

MEMORY_LIMIT = 1 << 30  # bytes
# Never more than this share of what is free, in memory or on the disk.
_SHARE = 0.25
_CHUNK = 1 << 24  # bytes


class StateStore:
    """One hidden state for every token of every row, float32.

    Args:
        lengths: tokens of each row.
        width: of a state.
        memory_limit: bytes; what is larger goes into a file of ``folder``, which has no name and
            is gone with the process, however that ends.
        folder: for that file.

    Attributes:
        bytes: what it takes.
        in_memory: whether it takes them of the memory.
        seconds: what computing the states took; 0 until somebody says so.

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
        self.in_memory, self.seconds = self.bytes <= memory_limit, 0.0
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


class StateStores:
    """Stores found again by what decides their content, as long as there is room for them.

    In memory all together take at most `MEMORY_LIMIT`, and a quarter of what would be free without
    them; their files at most a quarter of what would be free on the disk. Whichever was used least
    recently goes first. They are not kept for another process: a digest of weights and rows knows
    nothing of another build of torch or another processor, which round otherwise.
    """

    def __init__(self) -> None:
        self._stores: dict[bytes, StateStore] = {}  # least recently used first

    def find(self, key: bytes) -> StateStore | None:
        """Return the store of that content, if it is still there."""
        store = self._stores.pop(key, None)
        if store is not None:
            self._stores[key] = store
        return store

    def keep(self, key: bytes, store: StateStore) -> None:
        """Take in a store that was opened here and is full."""
        self._stores[key] = store

    def opened(self, lengths: Sequence[int], width: int, folder: Path) -> StateStore | None:
        """Return a new store; None if there would be no room even without the others.

        Args:
            lengths: tokens of each row.
            width: of a state.
            folder: for its file, should it need one.

        Raises:
            OSError: the disk has no room for the file, whatever it said.
        """
        size = 4 * width * sum(lengths)
        free = psutil.virtual_memory().available + self.bytes_held(in_memory=True)
        memory = min(MEMORY_LIMIT, int(_SHARE * free))
        in_memory, limit = size <= memory, memory
        if not in_memory:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free + self.bytes_held(in_memory=False)
            limit = int(_SHARE * free)
        if size > limit:
            return None
        for key, store in list(self._stores.items()):
            if self.bytes_held(in_memory=in_memory) + size <= limit:
                break
            if store.in_memory == in_memory:
                del self._stores[key]
        return StateStore(lengths, width, memory_limit=memory, folder=folder)

    def bytes_held(self, *, in_memory: bool, besides: StateStore | None = None) -> int:
        """Return what all stores but one take together, in memory or in files."""
        return sum(
            store.bytes
            for store in self._stores.values()
            if store.in_memory == in_memory and store is not besides
        )

    def clear(self) -> None:
        """Let all stores go."""
        self._stores.clear()


def _mapped(shape: tuple[int, int], folder: Path) -> Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Written, not only sized: a full disk is an error here, and would kill the process later.
        zeros = bytes(_CHUNK)
        for start in range(0, 4 * shape[0] * shape[1], _CHUNK):
            file.write(zeros[: 4 * shape[0] * shape[1] - start])
        file.flush()
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))
