"""Pooling against loops over rows, for padding on either side."""

import pytest
import torch

from deltafit.adapters import select_targets
from deltafit.errors import UsageError
from deltafit.tasks.pooling import POOLINGS, PooledClassifier, Pooling, pool
from tests.tiny_models import HIDDEN, tiny_inputs, tiny_model


def pooled_by_hand(state: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    rows = []
    for vectors, kept in zip(state, mask, strict=True):
        tokens = vectors[kept.bool()]
        rows.append({"cls": tokens[0], "last": tokens[-1], "mean": tokens.mean(0)}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("lengths", [(5, 1, 3), (4, 4, 4)])
@pytest.mark.parametrize("left", [False, True])
def test_equals_a_loop_over_rows(pooling: Pooling, lengths: tuple[int, ...], left: bool) -> None:
    state = torch.randn(len(lengths), max(lengths), 6, dtype=torch.float64)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        if left:
            mask[row, -length:] = 1
        else:
            mask[row, :length] = 1

    torch.testing.assert_close(pool(state, mask, pooling), pooled_by_hand(state, mask, pooling))


def test_padding_holds_anything_without_effect() -> None:
    state, mask = torch.randn(1, 4, 3), torch.tensor([[1, 1, 0, 0]])
    other = state.clone()
    other[0, 2:] = 1e30
    for pooling in POOLINGS:
        torch.testing.assert_close(pool(state, mask, pooling), pool(other, mask, pooling))


def test_unknown_pooling_lists_the_known() -> None:
    with pytest.raises(UsageError, match="cls, mean, last"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "max")  # type: ignore[arg-type]  # the point


def test_classifier_starts_undecided_and_applies_the_formula() -> None:
    encoder = tiny_model("bert", task="base")
    classifier = PooledClassifier(encoder, 32, 3, "mean", 0.5).eval()
    inputs = tiny_inputs(encoder)
    assert torch.equal(classifier(**inputs), torch.zeros(3, 3))

    torch.nn.init.normal_(classifier.classifier.weight)
    torch.nn.init.normal_(classifier.classifier.bias)
    state = encoder(**inputs).last_hidden_state
    features = pooled_by_hand(state, inputs["attention_mask"], "mean")
    expected = features @ classifier.classifier.weight.T + classifier.classifier.bias
    torch.testing.assert_close(classifier(**inputs), expected)


def test_dropout_is_of_features_and_in_training_alone() -> None:
    classifier = PooledClassifier(tiny_model("bert", task="base"), 32, 2, "cls", 0.5)
    torch.nn.init.normal_(classifier.classifier.weight)
    inputs = tiny_inputs(classifier.encoder)  # type: ignore[arg-type]  # a PreTrainedModel
    classifier.eval()
    assert torch.equal(classifier(**inputs), classifier(**inputs))
    classifier.dropout.train()
    assert not torch.equal(classifier(**inputs), classifier(**inputs))


def test_a_pooled_classifier_has_its_encoders_default_targets():
    model = PooledClassifier(tiny_model("bert", task="base"), HIDDEN, 3, "mean", 0.0)
    names = {target.rpartition(".")[2] for target in select_targets(model, None)}
    assert names == {"query", "value"}
