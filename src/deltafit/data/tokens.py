"""Texts as token ids, with a count of what was cut, and the orders in which to batch them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from deltafit.errors import DeltafitError, UsageError

# Keeps the memory that the tokenizer needs beside its result small.
_TEXTS_AT_ONCE = 1000
_SAMPLED = 160  # tokens; beyond a sliding window, and far less than training itself may hold


class Tokenised(NamedTuple):
    """Token ids of every text, special tokens included, and how many texts were cut."""

    input_ids: list[list[int]]
    truncated: int

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every text."""
        return [len(ids) for ids in self.input_ids]


def tokenise(
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    where: Callable[[int], str] | None = None,
) -> Tokenised:
    """Tokenise texts as ``tokenizer(text, truncation=True, max_length=max_length)`` does.

    Args:
        tokenizer: a transformers tokenizer.
        texts: the texts.
        max_length: the most tokens a text may have, special tokens included.
        where: says where the text of an index stands, for messages, as `LabelledTexts.place` does;
            otherwise its number among the texts is said.

    Returns:
        the ids, unpadded, and the number of texts that had more tokens than ``max_length``.

    Raises:
        UsageError: ``max_length`` leaves no room for a token of the text.
        DeltafitError: a text gives no token at all.
    """
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise UsageError(
            f"A maximum length of {max_length} leaves no room for text: the tokenizer adds "
            f"{special} special tokens. Give at least {special + 1}."
        )
    encode = _encode_fast if tokenizer.is_fast else _encode_slow
    input_ids: list[list[int]] = []
    truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part, cut = encode(tokenizer, list(texts[start : start + _TEXTS_AT_ONCE]), max_length)
        input_ids += part
        truncated += cut
    empty = [index for index, ids in enumerate(input_ids) if not ids]
    if empty:
        first = empty[0]
        place = where(first) if where else f"Text {first + 1} of {len(texts):,}"
        more = f" The same in {len(empty) - 1:,} more." if len(empty) > 1 else ""
        raise DeltafitError(
            f"{place}: the text {texts[first][:40]!r} has no tokens, since the tokenizer drops all "
            f"its characters.{more} Remove such texts."
        )
    return Tokenised(input_ids, truncated)


def _encode_fast(tokenizer: Any, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    # One pass gives ids and cuts: what did not fit comes back as further pieces of the same text.
    # Encoding whole and encoding the long texts again takes up to twice as long.
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    pieces = np.bincount(encoded["overflow_to_sample_mapping"], minlength=len(texts))
    first = np.cumsum(pieces) - pieces
    return [encoded["input_ids"][index] for index in first], int((pieces > 1).sum())


def _encode_slow(tokenizer: Any, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    options = {"padding": False, "return_attention_mask": False, "return_token_type_ids": False}
    # verbose=False: longer than the model takes is no news here, the next lines cut it.
    ids = tokenizer(texts, truncation=False, verbose=False, **options)["input_ids"]
    long = [index for index, tokens in enumerate(ids) if len(tokens) > max_length]
    if long:
        cut = tokenizer(
            [texts[index] for index in long], truncation=True, max_length=max_length, **options
        )["input_ids"]
        for index, tokens in zip(long, cut, strict=True):
            ids[index] = tokens
    return ids, len(long)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return a fair shuffle of ``range(count)`` that depends on nothing but the arguments.

    Every epoch has its own order, which torch's generators neither affect nor notice, so that a
    resumed run meets the rows in the order of the undisturbed one. RandomState's stream is frozen
    for good (NEP 19).
    """
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch]
    generator = np.random.RandomState(np.array(words, dtype=np.uint32))
    return [int(index) for index in generator.permutation(count)]


def length_grouped(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return batches of row indices, longest rows first, so that a batch holds little padding.

    The longest come first because a machine with too little memory should fail at once. Rows of
    one length keep their order. For evaluation and prediction, where order means nothing.

    Args:
        lengths: the number of tokens of every row.
        tokens: the most in a batch, its padding counted; a longer row is a batch of its own.

    Raises:
        UsageError: there is no room for a token.
    """
    if tokens < 1:
        raise UsageError(f"A batch of {tokens} tokens holds no text; give at least 1.")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not room:
            batches.append([])
            room = max(1, tokens // lengths[index])  # rows: the first is the longest
        batches[-1].append(index)
        room -= 1
    return batches


def across_lengths(rows: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
    """Return ``count`` rows (at least 2) from the shortest to the longest, long ones cut.

    For looking at what a model does with them.
    """
    ordered = sorted(rows, key=len)
    last = len(ordered) - 1
    return [ordered[last * part // (count - 1)][:_SAMPLED] for part in range(count)]
