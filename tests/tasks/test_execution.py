"""Texts that run packed give what each gives alone, and run packed where that pays."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from deltafit.data import resolve_model
from deltafit.engine import is_packed, packed
from deltafit.tasks import execution
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier, logits_of
from deltafit.tasks.inference import (
    compute_features,
    compute_logits,
    compute_logits_alone,
    encoder_of,
)
from tests.engine.ragged import LONGEST, PACKABLE, shapes_in_blocks
from tests.engine.test_checking import mix_rows, spoilt
from tests.tiny_models import ARCHITECTURES, FIRST_WORD, SHARED_BLOCKS, VOCABULARY
from tests.training.tiny_runs import LABELS, save_model

_random = random.Random(0)
# One text of each length, in no order.
ROWS = [
    _random.choices(range(FIRST_WORD, VOCABULARY), k=length)
    for length in _random.sample(range(1, LONGEST + 1), LONGEST)
]
TOKENS = 300


def loaded(folder: Path, architecture: str = "bert", head: str = "architecture") -> Classifier:
    source = resolve_model(save_model(folder, architecture))
    return load_classifier(source, LABELS, HeadSettings(head), seed=0)  # type: ignore[arg-type]  # tests give strings


def alone(row: list[int]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([row])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SHARED_BLOCKS])
def test_logits_are_those_of_each_text_alone(tmp_path: Path, architecture: str) -> None:
    classifier = loaded(tmp_path, architecture)
    with torch.no_grad():
        expected = torch.cat([logits_of(classifier.model, alone(row)) for row in ROWS])
    limit = 1e-5 * max(1.0, float(expected.abs().max()))
    done: list[int] = []
    found = compute_logits(classifier, ROWS, batch_tokens=TOKENS, progress=done.append)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=limit)
    assert sum(done) == LONGEST and len(done) > 5
    by_itself = torch.from_numpy(compute_logits_alone(classifier, ROWS))
    torch.testing.assert_close(by_itself, expected, rtol=0, atol=limit)
    # Looked at once; from then on no pass holds padding, or more than it may.
    assert classifier.packs == (architecture in PACKABLE)
    with shapes_in_blocks(classifier.model) as shapes:
        again = compute_logits(classifier, ROWS, batch_tokens=TOKENS)
    assert (again == found).all() and not is_packed(classifier.model)
    assert all(rows * length <= TOKENS for rows, length in shapes)
    padded = any(rows > 1 for rows, _ in shapes)
    needed = LONGEST if classifier.reads else sum(map(len, ROWS))
    real = sum(rows * length for rows, length in shapes) == needed
    assert (real, padded) == ((True, False) if classifier.packs else (False, True))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "modernbert", "deberta-v2", "umt5"])
def test_features_are_those_of_each_text_alone(tmp_path: Path, architecture: str) -> None:
    classifier = loaded(tmp_path, architecture, "mean")
    features = compute_features(classifier, ROWS, batch_tokens=TOKENS)
    assert classifier.packs == (architecture in PACKABLE)
    for index, row in enumerate(ROWS):
        with torch.no_grad():
            state = encoder_of(classifier.model)(**alone(row)).last_hidden_state[0]
        for name, vector in {"cls": state[0], "last": state[-1], "mean": state.mean(0)}.items():
            found = torch.from_numpy(features[name][index])  # type: ignore[index]  # a pooling
            torch.testing.assert_close(found, vector, rtol=1e-5, atol=1e-5)


def test_a_model_that_gives_something_else_packed_runs_padded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = loaded(tmp_path)
    spoilt(classifier.model, mix_rows)  # sees padding, too
    rows = [row for row in ROWS if len(row) in (3, 4, 40, 41)]
    compute_logits(classifier, rows)
    with shapes_in_blocks(classifier.model) as shapes:
        compute_logits(classifier, rows)
    assert classifier.packs is False and shapes == [(4, 41)]
    (said,) = caplog.messages  # once
    assert said.startswith("BertModel does not give the same packed as padded: the states")
    assert said.endswith("It runs padded, which is slower.")


def test_nobody_looks_where_there_is_nothing_to_gain(tmp_path: Path) -> None:
    classifier = loaded(tmp_path)
    for rows in ([ROWS[0]], [[5, 6, 7]] * 4, [[5]], [[7] * 40, [8] * 41]):
        compute_logits(classifier, rows)
    assert classifier.packs is None


def test_inside_packed_it_stays_so_and_does_not_look(tmp_path: Path) -> None:
    classifier = loaded(tmp_path)
    with packed(classifier.model):
        with shapes_in_blocks(classifier.model) as shapes:
            compute_logits(classifier, ROWS[:5])
        assert is_packed(classifier.model)
    assert shapes == [(1, sum(map(len, ROWS[:5])))] and classifier.packs is None


def test_the_look_goes_forward_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = loaded(tmp_path)
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("a backward pass"))
    compute_logits(classifier, ROWS)
    assert classifier.packs
    monkeypatch.setattr(execution, "check_packing", lambda *_, **__: pytest.fail("looked twice"))
    compute_logits(classifier, ROWS)


def test_a_failure_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    classifier = loaded(tmp_path)
    classifier.model.train()

    def fail(texts: int) -> None:
        assert is_packed(classifier.model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as failure:
        compute_logits(classifier, ROWS, progress=fail)
    assert failure.value.__traceback__ is not None  # nothing waits for it to be forgotten
    assert not is_packed(classifier.model) and classifier.model.training
    assert not torch.is_inference_mode_enabled()


def test_mixed_precision_is_near_and_not_the_same(tmp_path: Path) -> None:
    classifier = loaded(tmp_path)
    exact = compute_logits(classifier, ROWS)
    mixed = compute_logits(classifier, ROWS, precision="bf16")
    assert mixed.dtype == exact.dtype
    difference = abs(mixed - exact).max() / abs(exact).max()
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize(
    ("head", "reads"), [("architecture", True), ("cls", True), ("mean", False)]
)
def test_the_last_block_runs_for_what_the_head_reads(
    tmp_path: Path, head: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = loaded(tmp_path, head=head)
    nn.init.normal_(classifier.model.classifier.weight)  # a pooled one starts at zero
    expected = compute_logits_alone(classifier, ROWS)
    with shapes_in_blocks(classifier.model) as shapes:
        compute_logits(classifier, ROWS, batch_tokens=10_000)
    assert (classifier.reads is not None) is reads
    assert shapes[-1] == (1, LONGEST if reads else sum(map(len, ROWS)))
    # Features want all states, in the same passes.
    with shapes_in_blocks(classifier.model) as shapes:
        compute_features(classifier, ROWS, batch_tokens=10_000)
    assert shapes == [(1, sum(map(len, ROWS)))]
    # Without padding it pays for many rows, and there is nothing else to gain by packing.
    monkeypatch.setattr(execution, "_MANY", 8)
    even = [row[:9] for row in ROWS if len(row) >= 9]
    for rows, shape in ((even, (1, len(even))), (even[:7], (7, 9))):
        with shapes_in_blocks(classifier.model) as shapes:
            compute_logits(classifier, rows, batch_tokens=10_000)
        assert shapes == [shape if reads else (len(rows), 9)]
    with shapes_in_blocks(classifier.model) as shapes:
        compute_features(classifier, even, batch_tokens=10_000)
    assert shapes == [(len(even), 9)]
    found = compute_logits(classifier, ROWS, batch_tokens=TOKENS)
    assert abs(found - expected).max() < 1e-5 * max(1.0, abs(expected).max())
