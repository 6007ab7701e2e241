"""How texts run through a classifier that is used: without padding, where that pays."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from deltafit.data import across_lengths
from deltafit.engine import check_packing, find_reading, first_tokens, is_packed, packed
from deltafit.tasks.classification import Classifier, batch_of

_logger = logging.getLogger(__name__)

# Padding that must be saved, as a share of the real tokens. Rows sorted by length have little of
# it, and packing costs some small calls a pass: on MiniLM both were equal at about 4 %.
_LEAST_PADDING = 0.05
_CHECKED = 4  # rows, of lengths from the shortest to the longest
# Rows without padding that are worth looking whether the last block can run for first tokens alone:
# it saves less than a tenth of them, and looking takes as long as some twenty rows.
_MANY = 256


@contextmanager
def unpadded(
    classifier: Classifier,
    rows: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    *,
    all_states: bool = False,
) -> Iterator[None]:
    """Run the model's blocks on packed tokens within the block, if that pays and gives the same.

    The last one runs for first tokens alone, if the head reads no others. Whether it gives the same
    is seen from one small batch, forward alone, the first time that it would pay, and kept in
    ``classifier.packs`` and ``classifier.reads``. A model that cannot be packed runs padded, which
    is logged once, and so does every model on a GPU.

    Args:
        classifier: its model in any mode.
        rows: token ids of each text.
        batches: the indices of the rows that run together.
        all_states: those of all tokens are needed, and not the logits alone.
    """
    model = classifier.model
    padding = _is_padding_worth(rows, batches)
    many = len(rows) >= _MANY and not all_states
    if is_packed(model) or _is_on_gpu(classifier) or not (padding or many):
        yield
        return
    if classifier.packs is None:
        batch = batch_of(classifier, across_lengths(rows, _CHECKED))
        reason = check_packing(model, batch, gradients=False)
        classifier.packs = reason is None
        if reason is not None:
            _logger.warning("%s It runs padded, which is slower.", reason)
        else:
            classifier.reads = find_reading(model, batch, gradients=False)
    reads = None if all_states else classifier.reads
    with ExitStack() as stack:
        if classifier.packs and (padding or reads is not None):
            stack.enter_context(packed(model))
            if reads is not None:
                stack.enter_context(first_tokens(model, reads))
        yield


def _is_padding_worth(rows: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> bool:
    real = sum(map(len, rows))
    padded = sum(len(batch) * max(len(rows[index]) for index in batch) for batch in batches)
    return padded > (1 + _LEAST_PADDING) * real


def _is_on_gpu(classifier: Classifier) -> bool:
    return next(classifier.model.parameters()).device.type != "cpu"
