"""Collation, padding sides, loss: against transformers' and torch's own ways."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from deltafit.data import resolve_model
from deltafit.errors import UsageError
from deltafit.tasks.classification import (
    HeadSettings,
    classification_loss,
    collate,
    load_classifier,
    logits_of,
)
from deltafit.tasks.inference import (
    compute_features,
    compute_logits,
    compute_logits_alone,
    encoder_of,
)
from deltafit.tasks.pooling import POOLINGS
from tests.tiny_models import ARCHITECTURES, DECODERS, PAD
from tests.training.tiny_runs import LABELS, save_model, tiny_examples, tiny_tokenizer

ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_equals_the_tokenizers_padding(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    expected = tokenizer.pad({"input_ids": ROWS}, return_tensors="pt")
    batch = collate(ROWS, PAD, positions=False, left=side == "left")
    assert set(batch) == {"input_ids", "attention_mask"}
    for name, tensor in batch.items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("left", [False, True])
def test_positions_count_from_each_texts_first_token(left: bool) -> None:
    batch = collate(ROWS, PAD, positions=True, left=left)
    for row, tokens in enumerate(ROWS):
        kept = batch["position_ids"][row][batch["attention_mask"][row].bool()]
        assert kept.tolist() == list(range(len(tokens)))


@pytest.mark.parametrize("head", ["architecture", "last"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_decoders_give_equal_logits_for_either_padding_and_for_none(
    tmp_path: Path, architecture: str, head: str
) -> None:
    source = resolve_model(save_model(tmp_path, architecture))
    classifier = load_classifier(source, LABELS, HeadSettings(head), seed=0)  # type: ignore[arg-type]  # parametrised
    if head != "architecture":
        torch.nn.init.normal_(classifier.model.get_submodule("classifier").weight)  # type: ignore[arg-type]  # a Linear
    assert classifier.positions
    assert classifier.tokenizer.pad_token == classifier.tokenizer.eos_token

    def logits(rows: list[list[int]], left: bool) -> torch.Tensor:
        batch = collate(rows, classifier.pad_token_id, positions=classifier.positions, left=left)
        with torch.no_grad():
            return logits_of(classifier.model, batch)

    alone = torch.cat([logits([row], False) for row in ROWS])
    torch.testing.assert_close(logits(ROWS, True), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(ROWS, False), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_a_decoders_first_token_is_no_head(tmp_path: Path) -> None:
    source = resolve_model(save_model(tmp_path, "gpt2"))
    with pytest.raises(UsageError, match="last or mean"):
        load_classifier(source, LABELS, HeadSettings("cls"), seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inference_gives_each_row_what_it_gives_alone_and_leaves_training_possible(
    tmp_path: Path, architecture: str
) -> None:
    source = resolve_model(save_model(tmp_path, architecture))
    classifier = load_classifier(source, LABELS, HeadSettings(), seed=0)
    rows = tiny_examples(9).rows
    done: list[int] = []
    batched = compute_logits(classifier, rows, batch_tokens=24, progress=done.append)
    assert sum(done) == 9 and len(done) > 1
    alone = compute_logits_alone(classifier, rows)
    assert batched.shape == (9, 3)
    torch.testing.assert_close(torch.tensor(batched), torch.tensor(alone), rtol=1e-4, atol=1e-4)

    # What evaluation cached (rotary tables, relative positions) must not stop a backward pass.
    classifier.model.train()
    batch = collate(rows, classifier.pad_token_id, positions=classifier.positions)
    logits_of(classifier.model, batch).sum().backward()
    assert any(p.grad is not None for p in classifier.model.parameters())


def test_inference_gives_back_the_mode_it_found(tmp_path: Path) -> None:
    source = resolve_model(save_model(tmp_path, dropout=True))
    classifier = load_classifier(source, LABELS, HeadSettings(), seed=0)
    classifier.model.train()
    first = compute_logits(classifier, ROWS)
    assert (first == compute_logits(classifier, ROWS)).all()  # no dropout
    assert classifier.model.training


def test_features_are_the_encoders_pooled_states(tmp_path: Path) -> None:
    source = resolve_model(save_model(tmp_path))
    classifier = load_classifier(source, LABELS, HeadSettings("mean"), seed=0)
    done: list[int] = []
    features = compute_features(classifier, ROWS, batch_tokens=10, progress=done.append)
    assert set(features) == set(POOLINGS) and sum(done) == len(ROWS)
    encoder = encoder_of(classifier.model)
    for index, row in enumerate(ROWS):
        with torch.no_grad():
            state = encoder(**collate([row], PAD, positions=False)).last_hidden_state[0]
        expected = {"cls": state[0], "last": state[-1], "mean": state.mean(0)}
        for pooling, vector in expected.items():
            torch.testing.assert_close(
                torch.tensor(features[pooling][index]), vector, rtol=1e-4, atol=1e-5
            )


def test_loss_equals_torchs_in_float32() -> None:
    logits, labels = torch.randn(6, 3, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 0, 0, 1])
    weights = torch.tensor([0.5, 2.0, 1.0])
    loss = classification_loss(logits, labels, class_weights=weights, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    expected = functional.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
