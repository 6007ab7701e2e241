"""What a frozen prefix gives for each training row, computed once and fed to every epoch."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deltafit.data import across_lengths, length_grouped
from deltafit.engine import CannotFeedError, FrozenPrefix, StateStore, StateStores, find_prefix
from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.tasks.inference import BATCH_TOKENS
from deltafit.training.course import Course, Examples
from deltafit.training.progress import Counted, Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.validation import plain_forward

FROZEN_LAYERS = "frozen layers"
"""What a reporter is told that computing the states is."""


def constant_batches(lengths: Sequence[int], settings: TrainingSettings) -> list[list[int]]:
    """Return the rows of each pass in which constant states are computed.

    They are always the same, so that the states do not depend on where a run was resumed.

    Args:
        lengths: tokens of each row.
        settings: batch size and maximum length, which no pass goes beyond.
    """
    return length_grouped(lengths, min(BATCH_TOKENS, settings.batch_size * settings.max_length))


class ConstantStates:
    """The frozen prefix of a run, where there is one, and its states for the training rows.

    The prefix runs without dropout and in float32, its states kept or not: below the lowest
    trained layer a text is a constant. So keeping them changes nothing but rounding.

    Args:
        classifier: adapted, on its device.
        train: the rows to learn from.
        trained: names of the trained parameters.
        settings: batch size and maximum length; see ``constant_batches``.
        folder: for states that are too many for memory.
        reporter: told how computing them goes, or why frozen blocks run in every step.
        shared: of the runs of one command, which find there what an earlier one computed; None
            for a run by itself, whose states go with it.

    Attributes:
        others_bytes: what the kept states of other runs held in memory to the end of this one.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        trained: tuple[str, ...],
        settings: TrainingSettings,
        folder: Path,
        reporter: Reporter,
        shared: StateStores | None = None,
    ) -> None:
        self._classifier, self._train = classifier, train
        self._folder, self._reporter, self._shared = folder, reporter, shared
        self._batches = constant_batches([len(row) for row in train.rows], settings)
        self._store: StateStore | None = None
        self.others_bytes = 0
        self._prefix = self._found_prefix(trained)
        if shared is not None and self._prefix is None:
            shared.clear()  # training through all blocks is what needs memory most

    @property
    def whole(self) -> bool:
        """Whether all the blocks are constant, so that nothing but the head is left to run."""
        return self._prefix is not None and self._prefix.whole

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks of the prefix: they never run in training mode."""
        return () if self._prefix is None else self._prefix.blocks

    def _found_prefix(self, trained: tuple[str, ...]) -> FrozenPrefix | None:
        model = self._classifier.model
        batch = batch_of(self._classifier, across_lengths(self._train.rows, 2))
        try:
            with plain_forward(model):
                return find_prefix(model, trained, batch)
        except CannotFeedError as reason:
            self._reporter.say(
                f"{type(model).__name__} runs its frozen blocks anew in every step: {reason}."
            )
            return None

    def keep(self, course: Course) -> None:
        """Compute or find the states of all rows, if there is a prefix and room for them.

        The decision and the time that computing takes are kept in ``course``: a resumed run does
        as it did, and a run that finds its states is told what they cost the one that had none.

        Raises:
            DeltafitError: the run kept its states, and there is no room for them any more.
        """
        if self._prefix is None or course.kept is False:
            return
        began, first = time.perf_counter(), course.kept is None
        self._store = self._found() if self._shared is not None else self._computed(StateStores())
        course.kept = self._store is not None
        if first:
            spent = time.perf_counter() - began
            course.seconds += spent if self._store is None else self._store.seconds
        elif not course.kept:
            raise DeltafitError(
                "The run kept what its frozen layers give, and goes on bit for bit only so. Free "
                f"memory or disk space at {self._folder}, and resume it again."
            )

    def _found(self) -> StateStore | None:
        """Return the shared store of the states, computed if no run has done so yet."""
        assert self._shared is not None
        key = self._key()
        store = self._shared.find(key)
        if store is None and (store := self._computed(self._shared)) is not None:
            self._shared.keep(key, store)
        return store

    def _key(self) -> bytes:
        """Return a digest of everything that decides a bit of the states."""
        assert self._prefix is not None
        classifier, rows = self._classifier, self._train.rows
        device = next(classifier.model.parameters()).device
        how = (str(device), torch.get_num_threads(), classifier.pad_token_id, classifier.positions)
        digest = blake2b(self._prefix.digest(), digest_size=32)
        digest.update(json.dumps([how, self._batches]).encode())
        for row in rows:
            digest.update(np.array([len(row), *row], dtype=np.int64).data)
        return digest.digest()

    def _computed(self, stores: StateStores) -> StateStore | None:
        """Return a new store with the states of all rows; say why if there is no room for it."""
        assert self._prefix is not None
        began, store = time.perf_counter(), None
        lengths = [len(row) for row in self._train.rows]
        advance = Counted(self._reporter, FROZEN_LAYERS, len(lengths))
        with plain_forward(self._classifier.model):
            for rows in self._batches:
                states = self._prefix.states(self._batch(rows))
                store = store or self._opened(stores, lengths, states.shape[-1])
                if store is None:
                    return None
                store.put(rows, states)
                advance(len(rows))
        assert store is not None
        store.seconds = time.perf_counter() - began
        return store

    @contextmanager
    def fed(self, rows: list[int]) -> Iterator[None]:
        """Feed the model with the states of ``rows`` within the block, if there is a prefix."""
        if self._prefix is None:
            yield
            return
        if self._store is None:
            with plain_forward(self._classifier.model):
                states = self._prefix.states(self._batch(rows))
        else:
            states = self._store.get(rows)
        device = next(self._classifier.model.parameters()).device
        with self._prefix.fed(states.to(device), padded=self._store is not None):
            yield

    def release(self) -> None:
        """Give the memory back, as far as no later run may need the states."""
        if self._shared is not None:
            self.others_bytes = self._shared.bytes_held(in_memory=True, besides=self._store)
        self._store = None

    def _opened(self, stores: StateStores, lengths: Sequence[int], width: int) -> StateStore | None:
        try:
            store = stores.opened(lengths, width, self._folder)
        except OSError:  # a quota, or another process was quicker
            store = None
        if store is None:
            size = 4 * width * sum(lengths)
            self._reporter.say(
                f"There is no room to keep what the frozen layers give ({size / 1e9:.1f} GB), so "
                "it is computed anew in every epoch."
            )
        return store

    def _batch(self, rows: list[int]) -> dict[str, Tensor]:
        return batch_of(self._classifier, [self._train.rows[row] for row in rows])
