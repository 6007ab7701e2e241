"""Mixed adapters that train modules whole, lie on other layers, or have methods of their own."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import activate, adapt
from deltafit.engine import mixed, packed
from deltafit.methods import IA3, DeltaMethod, Full, Head, LastBlocks, LoRA, Method, VeRA
from deltafit.methods.base import GeneratorFor, Layer
from deltafit.tasks.pooling import POOLINGS, PooledClassifier, Pooling
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import head_of, new_head, randomise
from tests.engine.mixes import (
    LENGTHS,
    METHODS,
    SEGMENTS,
    assert_each_has_its_own,
    with_adapters,
)
from tests.engine.ragged import in_training, ragged
from tests.tiny_models import HIDDEN, TwoTower, tiny_model


@dataclass(frozen=True)
class _Bias(DeltaMethod):
    """A change of the bias, with no fast way of its own."""

    command_line_name: ClassVar[str] = "bias"

    def for_module(self, module_name: str) -> "_Bias":
        return self

    def initialise(self, layer: Layer, generator_for: GeneratorFor) -> dict[str, Tensor]:
        return {"bias_change": torch.zeros(layer.outputs, dtype=torch.float64)}

    def deltas(self, layer: Layer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"bias": tensors["bias_change"]}


LoRA_ON = {
    "bert": {
        "words": ("word_embeddings",),
        "positions": ("position_embeddings",),  # looked up once for all rows
        "all": ("word_embeddings", "position_embeddings", "query", "dense"),
    },
    "gpt2": {"words": ("wte",), "positions": ("wpe",), "all": ("wte", "wpe", "c_attn", "c_proj")},
}


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", LoRA_ON)
def test_embeddings(architecture: str, run_packed: bool) -> None:
    targets = LoRA_ON[architecture]
    model = with_adapters(
        tiny_model(architecture).double(),
        {
            name: LoRA(targets[kind], rank=rank)
            for name, kind, rank in (
                ("one", "words", 2),
                ("two", "positions", 3),
                ("three", "all", 1),
            )
        },
    )
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, ragged(LENGTHS))


WHOLE: dict[str, dict[str, Method]] = {
    "last blocks": {"one": LoRA(rank=2), "two": LastBlocks(1), "three": LastBlocks(2)},
    "full": {"one": Full(), "two": LoRA(rank=2), "three": Full()},
    "heads": {"one": Head(), "two": Head(), "three": LoRA(rank=3)},
    "before and behind the base": {"one": IA3(), "two": VeRA(rank=9), "three": LoRA(rank=2)},
}


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("methods", WHOLE.values(), ids=WHOLE)
def test_what_is_trained_whole_runs_once_a_segment(
    methods: dict[str, Method], architecture: str, run_packed: bool
) -> None:
    model = in_training(with_adapters(tiny_model(architecture).double(), methods))
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, ragged(LENGTHS))
        enable_gradient_checkpointing(model)
        assert_each_has_its_own(model, ragged(LENGTHS))


def test_modules_trained_whole_beside_lora() -> None:
    names = ("bert.embeddings", "bert.encoder.layer.1.output")
    methods: dict[str, Method] = {**METHODS, "two": LoRA(rank=2, trained_modules=names)}
    model = with_adapters(tiny_model("bert").double(), methods)
    with packed(model):
        assert_each_has_its_own(model, ragged(LENGTHS))


def test_one_row_for_all_that_each_scales_before_the_base() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4, 5))
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(self.table)

    model, x = Positions(), torch.randn(3, 4, 3)
    expected = []
    for name, rows in (("a", x[:2]), ("b", x[2:])):
        adapt(model, IA3(("layer",), feedforward_modules=("layer",)), name=name)
        randomise(model, name, seed=len(expected))
        expected.append(model(rows))
    with mixed(model, [("a", 2), ("b", 1)]):
        torch.testing.assert_close(model(x), torch.cat(expected))


@pytest.mark.parametrize("run_packed", [False, True])
def test_heads_of_other_label_counts(run_packed: bool) -> None:
    model = tiny_model("bert")
    for name, labels in (("one", 5), ("two", 2), ("three", 4)):
        adapt(model, METHODS[name], name=name, head=head_of(model), initial=new_head(labels))
        randomise(model, name)
    batch = ragged(LENGTHS)
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, batch, tolerance=2e-5)
        with mixed(model, SEGMENTS):
            logits = model(**batch).logits
    assert logits.shape == (7, 5)
    finite = [5, 5, 3, 2, 4, 4, 5]  # None has the model's own three
    assert logits.isfinite().sum(1).tolist() == finite
    for row, labels in enumerate(finite):
        assert (logits[row, labels:] == -torch.inf).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_pooled_heads(architecture: str, pooling: Pooling) -> None:
    encoder = tiny_model(architecture, task="base")
    model = PooledClassifier(encoder, HIDDEN, 3, pooling, dropout=0.0).eval()
    head = ("classifier.weight", "classifier.bias")
    for labels, (name, method) in enumerate(METHODS.items(), 2):
        initial = {head[0]: torch.ones(labels, HIDDEN), head[1]: torch.ones(labels)}
        adapt(model, method, name=name, head=head, initial=initial)
        randomise(model, name, seed=labels)
    for context in (nullcontext(), packed(model)):
        with context:
            assert_each_has_its_own(model, ragged(LENGTHS), tolerance=2e-5)


@pytest.mark.parametrize("method", [LoRA(rank=2, target_modules=("query",)), _Bias(("query",))])
def test_a_method_without_a_fast_way_and_a_layer_with_its_own(method: Method) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = tiny_model("bert").double()
    model.bert.encoder.layer[1].attention.self.query.__class__ = Doubled
    with_adapters(model, {"one": method, "two": _Bias(("query", "key")), "three": LoRA(rank=2)})
    for context in (nullcontext(), packed(model)):
        with context:
            assert_each_has_its_own(model, ragged(LENGTHS))


def test_an_adapter_that_is_active_has_no_say() -> None:
    model = with_adapters(tiny_model("bert").double())
    adapt(model, Full(), name="another")
    randomise(model, "another")
    for active in ("another", "two"):
        activate(model, active)
        assert_each_has_its_own(model, ragged(LENGTHS))
        assert_each_has_its_own(model, ragged((3, 2)), [(None, 2)])
        assert_each_has_its_own(model, ragged((3, 2)), [("one", 2)])


def test_a_tied_embedding_trained_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.scores = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.scores.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.scores(self.words(ids).tanh())

    model = Tied().double()
    for name in ("one", "two"):
        adapt(model, Full(), name=name)
        randomise(model, name)
    assert_each_has_its_own(model, {"ids": torch.tensor([1, 4, 1])}, [("one", 1), ("two", 2)])


def test_models_without_blocks() -> None:
    model = TwoTower().double()
    for rank, name in enumerate(("one", "two"), 1):
        adapt(model, LoRA(target_modules=("user.0", "item.2"), rank=rank), name=name)
        randomise(model, name, seed=rank)
    users, items = torch.randn(4, 12).double(), torch.randn(4, 20).double()
    expected = []
    for name in ("one", "two"):
        activate(model, name)
        expected.append(model(users, items))
    with mixed(model, [("two", 1), ("one", 3)]):
        found = model(users, items)
    torch.testing.assert_close(found, torch.cat([expected[1][:1], expected[0][1:]]))


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_block_that_runs_again_has_the_layout_of_its_batch(
    architecture: str, run_packed: bool
) -> None:
    model = in_training(with_adapters(tiny_model(architecture).double()))
    activate(model, "one")
    trained = [p for p in model.parameters() if p.requires_grad]
    batches = [ragged(LENGTHS), ragged(LENGTHS[::-1]), ragged((4,) * 7)]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).logits.square().sum()

    with mixed(model, SEGMENTS):
        expected = [torch.autograd.grad(loss(batch), trained) for batch in batches]
    enable_gradient_checkpointing(model)
    with packed(model) if run_packed else nullcontext(), mixed(model, SEGMENTS):
        losses = [loss(batch) for batch in batches]  # all before the first backward pass
        found = [torch.autograd.grad(loss, trained) for loss in losses]
    for one, other in zip(found, expected, strict=True):
        for gradient, reference in zip(one, other, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-4)
