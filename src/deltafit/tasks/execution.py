"""How texts run through a classifier that is used: without padding, where that pays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deltafit.data import across_lengths
from deltafit.engine import check_packing, is_packed, packed
from deltafit.tasks.classification import Classifier, batch_of

# Padding that must be saved, as a share of the real tokens. Rows sorted by length have little of
# it, and packing costs some small calls a pass: on MiniLM both were equal at about 4 %.
_LEAST_PADDING = 0.05
_CHECKED = 4  # rows, of lengths from the shortest to the longest


@contextmanager
def unpadded(
    classifier: Classifier, rows: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]
) -> Iterator[None]:
    """Run the model's blocks on packed tokens within the block, if that pays and gives the same.

    Whether it gives the same is seen from one small batch, forward alone, the first time that it
    would pay, and kept in ``classifier.packs``. A model that cannot be packed runs padded, and so
    does every model on a GPU.

    Args:
        classifier: its model in any mode.
        rows: token ids of each text.
        batches: the indices of the rows that run together.
    """
    model = classifier.model
    if is_packed(model) or not _pays(rows, batches) or _is_on_gpu(classifier):
        yield
        return
    if classifier.packs is None:
        batch = batch_of(classifier, across_lengths(rows, _CHECKED))
        classifier.packs = check_packing(model, batch, gradients=False) is None
    if not classifier.packs:
        yield
        return
    with packed(model):
        yield


def _pays(rows: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> bool:
    real = sum(map(len, rows))
    padded = sum(len(batch) * max(len(rows[index]) for index in batch) for batch in batches)
    return padded > (1 + _LEAST_PADDING) * real


def _is_on_gpu(classifier: Classifier) -> bool:
    return next(classifier.model.parameters()).device.type != "cpu"
