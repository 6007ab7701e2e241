"""What a frozen prefix gives for each training row, computed once and fed to every epoch."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch import Tensor

from deltafit.data import length_grouped
from deltafit.engine.prefix import FrozenPrefix, find_prefix
from deltafit.engine.states import StateStore
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.training.course import Examples
from deltafit.training.progress import Reporter
from deltafit.training.validation import plain_forward

# Never more than this share of what is free, in memory or on the disk.
_SHARE = 0.25
MEMORY_LIMIT = 1 << 30  # bytes


class ConstantStates:
    """The frozen prefix of a run, where there is one, and its states for the training rows.

    The prefix runs without dropout, kept or not: below the lowest trained layer a text is a
    constant. That is what makes keeping the states change nothing.

    Args:
        classifier: adapted, on its device.
        train: the rows to learn from.
        trained: names of the trained parameters.
        folder: for states that are too many for memory.
        reporter: told how computing them goes.
        batch_size: rows in one forward pass.

    Attributes:
        kept_bytes: what the kept states take; 0 where none are kept.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        trained: tuple[str, ...],
        folder: Path,
        reporter: Reporter,
        *,
        batch_size: int,
    ) -> None:
        self._classifier, self._train = classifier, train
        self._folder, self._reporter, self._batch_size = folder, reporter, batch_size
        self._store: StateStore | None = None
        self.kept_bytes = 0
        order = sorted(range(len(train)), key=lambda row: len(train.rows[row]))
        with plain_forward(classifier.model):
            self._prefix: FrozenPrefix | None = find_prefix(
                classifier.model, trained, self._batch([order[0], order[-1]])
            )

    def freeze(self) -> None:
        """Put the prefix into evaluation mode, after the model was put into training mode."""
        if self._prefix is not None:
            self._prefix.freeze()

    @property
    def whole(self) -> bool:
        """Whether all the blocks are constant, so that nothing but the head is left to run."""
        return self._store is not None and self._prefix is not None and self._prefix.whole

    def compute(self) -> float:
        """Compute the states of all rows, if there is a prefix and room for them.

        Returns:
            the seconds it took.
        """
        if self._prefix is None:
            return 0.0
        began = time.perf_counter()
        lengths = [len(row) for row in self._train.rows]
        done = 0
        self._reporter.start("frozen layers", len(lengths), 0)
        training = self._classifier.model.training
        self._classifier.model.eval()
        with plain_forward(self._classifier.model):
            # Always the same batches: the states do not depend on where a run was resumed.
            for rows in length_grouped(lengths, self._batch_size):
                states = self._prefix.states(self._batch(rows))
                if self._store is None and not self._opened(lengths, states.shape[-1]):
                    break
                assert self._store is not None
                self._store.put(rows, states)
                done += len(rows)
                self._reporter.step(done, None, done / (time.perf_counter() - began))
        self._classifier.model.train(training)
        return time.perf_counter() - began

    @contextmanager
    def fed(self, rows: list[int]) -> Iterator[None]:
        """Feed the model with the states of ``rows`` within the block, if they are kept."""
        if self._prefix is None or self._store is None:
            yield
            return
        states = self._store.get(rows).to(next(self._classifier.model.parameters()).device)
        with self._prefix.fed(states):
            yield

    def release(self) -> None:
        """Give the memory back."""
        self._store = None

    def _opened(self, lengths: list[int], width: int) -> bool:
        """Make the store; say why there is none if there is no room."""
        limit = min(MEMORY_LIMIT, int(_SHARE * psutil.virtual_memory().available))
        size = 4 * width * sum(lengths)
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if size > limit and size > _SHARE * free:
            self._reporter.say(
                f"The frozen layers' results would take {size / 1e9:.1f} GB, more than a quarter "
                "of what is free here, so they are computed anew in every epoch."
            )
            return False
        self._store = StateStore(lengths, width, memory_limit=limit, folder=self._folder)
        self.kept_bytes = self._store.bytes
        return True

    def _batch(self, rows: list[int]) -> dict[str, Tensor]:
        return batch_of(self._classifier, [self._train.rows[row] for row in rows])
