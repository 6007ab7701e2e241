"""Token ids and cut counts against tokenising text by text; the orders of batches."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltafit.data import across_lengths, epoch_order, length_grouped, tokenise
from deltafit.data import tokens as tokens_module
from deltafit.errors import DeltafitError, UsageError

WORDS = ["a", "transformer", "unbelievably", "é", "日本", "don't", "\U0001f600", "2026"]


@pytest.fixture(scope="module")
def tokenizer(minilm_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(minilm_path)


class Slow:
    """The same tokenizer as the slow kind answers: no overflowing pieces."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.num_special_tokens_to_add = tokenizer.num_special_tokens_to_add

    def __call__(self, texts: list[str], **options: Any) -> Any:
        assert "return_overflowing_tokens" not in options
        return self.tokenizer(texts, **options)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("max_length", [3, 16, 40, 512])
def test_ids_and_cuts_are_those_of_one_text_at_a_time(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, side: str, slow: bool, max_length: int
) -> None:
    monkeypatch.setattr(tokens_module, "_TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    draw = random.Random(max_length)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(60)]
    found = tokenise(Slow(tokenizer) if slow else tokenizer, texts, max_length)
    whole = [len(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    assert found.truncated == sum(length > max_length for length in whole)
    assert found.input_ids == [
        tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts
    ]
    assert found.lengths == [min(length, max_length) for length in whole]


def test_a_text_of_exactly_the_maximum_is_not_cut(tokenizer: Any) -> None:
    text = "one two three"
    length = len(tokenizer(text)["input_ids"])
    assert tokenise(tokenizer, [text], length).truncated == 0
    assert tokenise(tokenizer, [text], length - 1).truncated == 1


def test_no_texts_and_no_room(tokenizer: Any) -> None:
    assert tokenise(tokenizer, [], 8) == ([], 0)
    with pytest.raises(UsageError, match=r"length of 2 leaves no room.*at least 3"):
        tokenise(tokenizer, ["a"], 2)


def test_a_text_without_tokens_is_refused() -> None:
    class Forgetful:
        is_fast = False

        def num_special_tokens_to_add(self) -> int:
            return 0

        def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1] if text.isalpha() else [] for text in texts]}

    with pytest.raises(DeltafitError, match=r"^Text 2 of 3: the text '\?' has no tokens"):
        tokenise(Forgetful(), ["a", "?", "b"], 4)
    with pytest.raises(DeltafitError, match=r"^d.csv, row 8: the text '\?'.* same in 1 more"):
        tokenise(Forgetful(), ["a", "?", "!"], 4, where=lambda index: f"d.csv, row {7 + index}")


@given(count=st.integers(0, 200), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_every_epoch_has_every_row_once(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed, epoch)


def test_orders_differ_by_seed_and_epoch_and_leave_torch_alone() -> None:
    state = torch.get_rng_state()
    orders = {
        tuple(epoch_order(50, seed, epoch)) for seed in (0, 1, 2**32, 2**33) for epoch in (0, 1, 2)
    }
    assert len(orders) == 12
    assert torch.equal(torch.get_rng_state(), state)
    assert epoch_order(8, 0, 1) == [4, 0, 6, 1, 2, 7, 5, 3]


def test_the_shuffle_is_fair() -> None:
    """Every row comes first about equally often: chi-squared with 9 degrees, 99.9 % below 27.9."""
    firsts = [epoch_order(10, seed, 0)[0] for seed in range(2000)]
    statistic = sum((firsts.count(row) - 200) ** 2 / 200 for row in range(10))
    assert statistic < 27.9


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 512), max_size=100), tokens=st.integers(1, 2000))
def test_batches_by_length(lengths: list[int], tokens: int) -> None:
    batches = length_grouped(lengths, tokens)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert order == sorted(order, key=lambda index: (-lengths[index], index))
    padded = [len(batch) * lengths[batch[0]] for batch in batches]
    assert all(n <= tokens or len(b) == 1 for n, b in zip(padded, batches, strict=True))
    # One row more would not have fitted.
    assert all(n + lengths[b[0]] > tokens for n, b in zip(padded[:-1], batches, strict=False))


def test_a_batch_holds_a_token() -> None:
    with pytest.raises(UsageError, match="batch of 0 tokens"):
        length_grouped([1, 2], 0)


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=30), count=st.integers(2, 6))
def test_rows_across_lengths(lengths: list[int], count: int) -> None:
    chosen = [len(row) for row in across_lengths([[7] * length for length in lengths], count)]
    assert len(chosen) == count and chosen == sorted(chosen)
    assert chosen[0] == min(160, *lengths) and chosen[-1] == min(160, max(lengths))
