"""What a frozen prefix gives for each training row, computed once and fed to every epoch."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch import Tensor

from deltafit.data import length_grouped
from deltafit.engine import FrozenPrefix, StateStore, find_prefix
from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.training.course import Course, Examples, sample
from deltafit.training.progress import Counted, Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.validation import plain_forward

# Never more than this share of what is free, in memory or on the disk.
_SHARE = 0.25
MEMORY_LIMIT = 1 << 30  # bytes


class ConstantStates:
    """The frozen prefix of a run, where there is one, and its states for the training rows.

    The prefix runs without dropout and in float32, its states kept or not: below the lowest
    trained layer a text is a constant. So keeping them changes nothing but rounding.

    Args:
        classifier: adapted, on its device.
        train: the rows to learn from.
        trained: names of the trained parameters.
        settings: batch size.
        folder: for states that are too many for memory.
        reporter: told how computing them goes.

    Attributes:
        kept_bytes: what the kept states take; 0 where none are kept.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        trained: tuple[str, ...],
        settings: TrainingSettings,
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self._classifier, self._train = classifier, train
        self._folder, self._reporter, self._batch_size = folder, reporter, settings.batch_size
        self._store: StateStore | None = None
        self.kept_bytes = 0
        with plain_forward(classifier.model):
            self._prefix: FrozenPrefix | None = find_prefix(
                classifier.model, trained, batch_of(classifier, sample(train, 2))
            )

    @property
    def whole(self) -> bool:
        """Whether all the blocks are constant, so that nothing but the head is left to run."""
        return self._prefix is not None and self._prefix.whole

    @property
    def blocks(self) -> int:
        """How many blocks are constant."""
        return 0 if self._prefix is None else len(self._prefix.blocks)

    def keep(self, course: Course) -> None:
        """Compute the states of all rows, if there is a prefix and room for them.

        The decision and the time it took are kept in ``course``: a resumed run does as it did.

        Raises:
            DeltafitError: the run kept its states, and there is no room for them any more.
        """
        if self._prefix is None or course.kept is False:
            return
        began = time.perf_counter()
        first, course.kept = course.kept is None, self._compute()
        if first:
            course.seconds += time.perf_counter() - began
        elif not course.kept:
            raise DeltafitError(
                "The run kept what its frozen layers give, and goes on bit for bit only so. Free "
                f"memory or disk space at {self._folder}, and resume it again."
            )

    def _compute(self) -> bool:
        assert self._prefix is not None
        lengths = [len(row) for row in self._train.rows]
        advance = Counted(self._reporter, "frozen layers", len(lengths))
        with plain_forward(self._classifier.model):
            # Always the same batches: the states do not depend on where a run was resumed.
            for rows in length_grouped(lengths, self._batch_size):
                states = self._prefix.states(self._batch(rows))
                if self._store is None and not self._opened(lengths, states.shape[-1]):
                    return False
                assert self._store is not None
                self._store.put(rows, states)
                advance(len(rows))
        return True

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
        with self._prefix.fed(states.to(next(self._classifier.model.parameters()).device)):
            yield

    def release(self) -> None:
        """Give the memory back."""
        self._store = None

    def _opened(self, lengths: list[int], width: int) -> bool:
        """Make the store; say why there is none if there is no room."""
        limit = min(MEMORY_LIMIT, int(_SHARE * psutil.virtual_memory().available))
        size = 4 * width * sum(lengths)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if size <= limit or size <= _SHARE * shutil.disk_usage(self._folder).free:
                self._store = StateStore(lengths, width, memory_limit=limit, folder=self._folder)
                self.kept_bytes = self._store.bytes
                return True
        except OSError:  # a quota, or another process was quicker
            pass
        self._reporter.say(
            f"There is no room to keep what the frozen layers give ({size / 1e9:.1f} GB), so it is "
            "computed anew in every epoch."
        )
        return False

    def _batch(self, rows: list[int]) -> dict[str, Tensor]:
        return batch_of(self._classifier, [self._train.rows[row] for row in rows])
