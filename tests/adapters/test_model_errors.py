"""What adapting and switching refuse, each in a sentence, the model as it was."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deltafit.adapters import (
    activate,
    adapt,
    disabled,
    merge,
    merge_and_unload,
    model_adapters,
    remove_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from tests.adapters.adapted import anatomy, head_of, logits, new_head, randomise
from tests.tiny_models import (
    tiny_model,
)


def test_training_in_place_without_a_copy() -> None:
    model = tiny_model("bert")
    pointers = {p.data_ptr() for p in model.parameters()}
    adapt(model, Full(), head=head_of(model), keep_base=False)
    assert {p.data_ptr() for p in model.parameters()} == pointers
    assert all(p.requires_grad for p in model.parameters())
    activate(model, "default")  # stays as it is
    before = anatomy(model)
    for attempt in (
        lambda: activate(model, None),
        lambda: remove_adapter(model, "default"),
        lambda: adapt(model, LoRA(), name="other"),
        lambda: disabled(model).__enter__(),
    ):
        with pytest.raises(DeltafitError, match=r"trained in place and not kept.*keep_base=True"):
            attempt()
        assert anatomy(model) == before
    merge_and_unload(model)  # nothing to add: the trained values stay
    assert not model_adapters(model).adapters
    with pytest.raises(DeltafitError, match="need keep_base=True"):
        adapt(model, Head(), head=head_of(model), initial=new_head(3), keep_base=False)


FAILURES: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "target": (lambda m: adapt(m, LoRA(("qeury",))), "'qeury' matches no module"),
    "head as target": (
        lambda m: adapt(m, LoRA(("classifier",)), head=head_of(m)),
        "trained and saved whole",
    ),
    "layers": (lambda m: adapt(m, LoRA(layers=(9,))), "no layer 9"),
    "pattern": (
        lambda m: adapt(m, LoRA(rank_pattern=(("qeury", 4),))),
        "given for 'qeury', which is the end of no target's name",
    ),
    "alpha pattern": (
        lambda m: adapt(m, LoRA(("query",), alpha_pattern=(("value", 4),))),
        "given for 'value'",
    ),
    "head": (lambda m: adapt(m, LoRA(), head=["clasifier.weight"]), "no parameter 'clasifier"),
    "trained modules": (
        lambda m: adapt(m, LoRA(trained_modules=("pooler",))),
        "trained_modules names 'pooler'.*bert, dropout, classifier",
    ),
    "last blocks": (lambda m: adapt(m, LastBlocks(9)), "has 3 blocks"),
    "nothing": (lambda m: adapt(m, Head()), "would train nothing"),
    "name taken": (lambda m: adapt(m, LoRA(), name="first"), "already has an adapter"),
    "no name": (lambda m: adapt(m, LoRA(), name=""), "must not be empty"),
    "dotted name": (lambda m: adapt(m, LoRA(), name="a.b"), "hold a dot"),
    "torch's name": (lambda m: adapt(m, LoRA(), name="type"), "attribute of torch modules"),
    "a state's name": (lambda m: adapt(m, LoRA(), name="training"), "attribute of torch modules"),
    "a dict's name": (lambda m: adapt(m, LoRA(), name="_parameters"), "attribute of torch modules"),
    "stranger": (
        lambda m: adapt(m, Head(), head=["classifier.bias"], initial=new_head(3)),
        "'classifier.weight', which is not trained",
    ),
    "width": (
        lambda m: adapt(m, Head(), head=head_of(m), initial=new_head(3, width=31)),
        re.escape("'classifier.weight' has shape [3, 31] and not [3, 32]"),
    ),
    "half a head": (
        lambda m: adapt(
            m,
            Head(),
            head=head_of(m),
            initial={"classifier.weight": new_head(5)["classifier.weight"]},
        ),
        re.escape("'classifier.weight' has shape [5, 32] and not [3, 32]"),
    ),
    "block": (
        lambda m: adapt(
            m,
            LastBlocks(1),
            initial={
                "bert.encoder.layer.2.output.dense.weight": torch.ones(31, 48),
                "bert.encoder.layer.2.output.dense.bias": torch.ones(31),
            },
        ),
        re.escape("output.dense.weight' has shape [31, 48] and not [32, 48]"),
    ),
    "norm": (
        lambda m: adapt(
            m, LastBlocks(1), initial={"bert.encoder.layer.2.output.LayerNorm.bias": torch.ones(1)}
        ),
        re.escape("LayerNorm.bias' has shape [1] and not [32]"),
    ),
    "activate": (lambda m: activate(m, "nobody"), "no adapter 'nobody'"),
    "remove": (lambda m: remove_adapter(m, "nobody"), "no adapter 'nobody' to remove"),
}


@pytest.mark.parametrize("second", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_the_model_untouched(failure: str, second: bool) -> None:
    attempt, said = FAILURES[failure]
    model = tiny_model("bert")
    if second or failure == "name taken":
        adapt(model, LoRA(("key",), rank=2), name="first", head=head_of(model))
        randomise(model, "first")
    before, output, active = anatomy(model), logits(model), model_adapters(model).active
    with pytest.raises(DeltafitError, match=said):
        attempt(model)
    assert anatomy(model) == before
    assert model_adapters(model).active == active
    assert torch.equal(logits(model), output)


class Normed(nn.Module):
    """A norm that counts as it runs, one without parameters, and layers around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)) for _ in range(2)
        )
        self.plain = nn.BatchNorm1d(8, track_running_stats=False)


@pytest.mark.parametrize(
    ("method", "head", "said"),
    [
        (LoRA(("first",), trained_modules=("norm",)), (), "'norm' keeps running statistics"),
        (LoRA(("first",), trained_modules=("blocks.1",)), (), r"'blocks\.1\.1' keeps .*GroupNorm"),
        (LastBlocks(1), (), r"'norm' keeps running statistics \(BatchNorm1d\)"),
        (Full(), (), "'norm' keeps running statistics"),
        (Head(), ("norm.weight", "norm.bias"), "'norm' keeps running statistics"),
        (Head(), ("norm.running_mean",), r"'norm\.running_mean' is a buffer"),
    ],
    ids=str,
)
def test_running_statistics_are_not_trained_whole(
    method: Method, head: tuple[str, ...], said: str
) -> None:
    model = Normed()
    before = anatomy(model)
    with pytest.raises(DeltafitError, match=said):
        adapt(model, method, head=head)
    assert anatomy(model) == before
    # what is frozen, only half trained, or keeps none, may be there
    adapt(model, LoRA(("first",), trained_modules=("plain",)), head=("norm.bias",))


def test_a_merged_model_refuses_every_change() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(), name="one")
    adapt(model, LoRA(), name="two")
    merge(model)
    before = anatomy(model)
    for attempt in (
        lambda: adapt(model, LoRA(), name="three"),
        lambda: activate(model, "one"),
        lambda: activate(model, None),
        lambda: remove_adapter(model, "one"),
        lambda: disabled(model).__enter__(),
    ):
        with pytest.raises(DeltafitError, match="'two' is merged; unmerge the model first"):
            attempt()
        assert anatomy(model) == before


def test_targets_that_match_nothing_are_a_wrong_use() -> None:
    with pytest.raises(UsageError):
        adapt(tiny_model("bert"), LoRA(("qeury",)))
