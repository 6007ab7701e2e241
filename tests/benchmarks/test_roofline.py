"""Which matrix products the roofline counts, against a count by hand."""

import pytest
import torch

import roofline
from deltafit.adapters import adapt
from deltafit.engine import find_keys_and_values
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from tests.adapters.adapted import head_of
from tests.tiny_models import LAYERS, tiny_inputs, tiny_model

PER_BLOCK = 6  # query, key, value, and three dense layers of a BERT


def counts(method: Method, **options: bool) -> tuple[int, int, int, int]:
    model = tiny_model("bert")
    adapt(model, method, head=head_of(model), **options)
    products = roofline.products_of(model.train(), tiny_inputs(model))
    return (
        len(products),
        sum(product.to_input for product in products),
        sum(product.to_weight for product in products),
        sum(product.constant for product in products),
    )


@pytest.mark.parametrize(
    ("method", "to_input", "to_weight", "constant"),
    [
        # The first block's query, key and value read what no trained tensor has touched.
        (LoRA(target_modules=("query", "value")), LAYERS * PER_BLOCK - 3, 0, 0),
        (LastBlocks(1), PER_BLOCK - 3, PER_BLOCK, (LAYERS - 1) * PER_BLOCK),
        (Head(), 0, 0, LAYERS * PER_BLOCK),
    ],
)
def test_products_of_a_method(method: Method, to_input: int, to_weight: int, constant: int) -> None:
    assert counts(method) == (LAYERS * PER_BLOCK, to_input, to_weight, constant)


def test_everything_is_needed_of_everything_that_is_trained() -> None:
    everything = LAYERS * PER_BLOCK
    assert counts(Full(), keep_base=False) == (everything, everything, everything, 0)


def test_constant_products_are_needed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(
        products: list[roofline.Product], tokens: list[int], texts: list[int], precision: str
    ) -> float:
        asked.append((len(products), [p.to_input for p in products], list(tokens)))
        return 1.0

    monkeypatch.setattr(roofline, "_seconds", note)
    weight = torch.zeros(2, 2)
    products = [roofline.Product(weight, constant=True), roofline.Product(weight, to_input=True)]
    assert roofline.training_seconds(products, [5, 6], "float32", texts=2, kept=[9]) == 2.0
    assert asked == [(1, [True], [5, 6]), (1, [False], [9])]
    asked.clear()
    roofline.training_seconds(products, [5, 6], "float32", texts=2)  # computed anew in every step
    assert asked[0] == (2, [False, True], [5, 6])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_products_take_time(precision: str) -> None:
    products = [roofline.Product(torch.zeros(64, 32), to_input=True, to_weight=True)]
    assert roofline.training_seconds(products, [7, 3], precision, texts=2) > 0
    assert roofline.forward_seconds(products, [], [], precision) == 0


def test_what_the_head_does_not_read_is_needed_of_one_token_a_text() -> None:
    model = tiny_model("bert").train()
    adapt(model, LoRA(target_modules=("query", "value")), head=head_of(model))
    batch = tiny_inputs(model)
    reads = find_keys_and_values(model, batch)
    products = roofline.products_of(model, batch, reads)
    # Of the last block all but key and value; nothing of what lies below.
    assert [p.of_texts for p in products] == [False] * (LAYERS - 1) * PER_BLOCK + [
        *(True, False, False, True, True, True)
    ]


def test_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda x, w: rows.append(len(x)))
    whole, first = (roofline.Product(torch.zeros(4, 2), of_texts=of) for of in (False, True))
    roofline.forward_seconds([whole, first], [9, 7], [3, 2], "float32")
    assert rows == [9, 3, 9, 3, 7, 2]  # the first pass twice: it warms up
