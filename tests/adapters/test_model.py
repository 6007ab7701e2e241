"""Several adapters on one base: added, switched, disabled, removed, and the base as it was."""

import pytest
import torch
from torch import nn

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    base_parameters,
    disabled,
    model_adapters,
    remove_adapter,
)
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from tests.adapters.adapted import anatomy, head_of, logits, new_head, randomise
from tests.tiny_models import (
    ARCHITECTURES,
    SHARED_BLOCKS,
    TwoTower,
    tiny_inputs,
    tiny_model,
)

EVERY = (*ARCHITECTURES, *SHARED_BLOCKS)
METHODS: list[Method] = [
    Full(),
    Head(),
    LastBlocks(2),
    LoRA(),
    LoRA("all-linear", rank=2, dropout=0.1),
    LoRA(("query", "word_embeddings"), trained_modules=("bert.pooler",)),
]


@pytest.mark.parametrize("architecture", EVERY)
def test_adapting_changes_no_logit_and_removing_restores_everything(architecture: str) -> None:
    model = tiny_model(architecture)
    model.get_input_embeddings().weight.requires_grad_(False)
    before, start = anatomy(model), logits(model)
    adapt(model, LoRA(rank=2), head=head_of(model))
    assert torch.equal(logits(model), start)
    randomise(model)
    changed = logits(model)
    assert not torch.allclose(changed, start, atol=1e-2)
    with disabled(model):
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)
    remove_adapter(model, "default")
    assert torch.equal(logits(model), start)
    assert anatomy(model) == before


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_trains_just_its_own(method: Method) -> None:
    model = tiny_model("bert")
    before, start = anatomy(model), logits(model)
    adapt(model, method, head=head_of(model))
    tensors = adapter_tensors(model, "default")
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(tensor) for tensor in tensors.values()}
    head = {"classifier.weight", "classifier.bias"}
    if isinstance(method, Full):
        assert set(tensors) == set(before["identities"])
    elif isinstance(method, Head):
        assert set(tensors) == head
    elif isinstance(method, LastBlocks):
        assert {n.split(".")[3] for n in set(tensors) - head} == {"1", "2"}
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # A has no gradient while B is zero
        optimiser.zero_grad()
        model(**tiny_inputs(model)).logits.square().sum().backward()
        optimiser.step()
    assert all(tensor.grad is not None for tensor in tensors.values() if tensor.requires_grad)
    model.eval()
    assert not torch.allclose(logits(model), start)
    remove_adapter(model, "default")
    assert anatomy(model) == before and torch.equal(logits(model), start)


def test_adapters_share_one_base_and_bring_their_own_heads() -> None:
    model = tiny_model("bert", num_labels=3)
    before, start = anatomy(model), logits(model)
    head = head_of(model)
    adapt(model, LoRA(rank=2), name="two", head=head, initial=new_head(2))
    adapt(model, LoRA(("key", "dense"), rank=3), name="five", head=head, initial=new_head(5))
    adapt(model, LastBlocks(1), name="blocks", head=head)
    adapt(model, Head(), name="seven", head=head, initial=new_head(7))
    adapt(model, LoRA(("pooler.dense",)), name="headless")
    labels = {"two": 2, "five": 5, "blocks": 3, "seven": 7, "headless": 3}
    outputs = {}
    for seed, name in enumerate(labels):
        randomise(model, name, seed=seed)
        activate(model, name)
        outputs[name] = logits(model)
        assert outputs[name].shape == (3, labels[name])
        assert model.classifier.out_features == labels[name]
        active = {id(t) for t in adapter_tensors(model, name).values()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == active
        # one base: every parameter outside the adapters is the very memory it was
        own = {
            n
            for n, _ in model.named_parameters()
            if n in model_adapters(model).adapters[name].replaced
        }
        for n, p in base_parameters(model).items():
            assert id(p) == before["identities"][n] or n in own
    assert len({round(o.sum().item(), 4) for o in outputs.values()}) == len(outputs)
    for name in ("seven", "five", "headless", "two", "blocks", "two"):  # in any order
        activate(model, name)
        assert torch.equal(logits(model), outputs[name])
    with disabled(model):
        assert torch.equal(logits(model), start)
    remove_adapter(model, "five")  # one that is not active
    assert torch.equal(logits(model), outputs["two"])
    remove_adapter(model, "two")  # the active one: the base stands
    assert torch.equal(logits(model), start)
    activate(model, "blocks")
    assert torch.equal(logits(model), outputs["blocks"])
    for name in ("seven", "blocks", "headless"):
        remove_adapter(model, name)
    assert anatomy(model) == before and torch.equal(logits(model), start)


def test_one_adapters_head_may_be_anothers_target() -> None:
    model = tiny_model("distilbert")
    before, head = anatomy(model), head_of(model)
    adapt(model, LoRA(("pre_classifier",)), name="inside")
    randomise(model, "inside")
    inside = logits(model)
    adapt(model, Head(), name="whole", head=head)
    randomise(model, "whole", seed=2)
    whole = logits(model)
    activate(model, "inside")
    assert torch.equal(logits(model), inside)
    activate(model, "whole")
    assert torch.equal(logits(model), whole)
    remove_adapter(model, "inside")
    remove_adapter(model, "whole")
    assert anatomy(model) == before


def test_disabled_restores_the_adapter_after_an_error_and_without_any_adapter() -> None:
    model = tiny_model("bert")
    with disabled(model):
        pass
    adapt(model, LoRA())
    with pytest.raises(ZeroDivisionError), disabled(model):
        1 / 0  # noqa: B018  # the error is the point
    assert model_adapters(model).active == "default"
    activate(model, None)
    with disabled(model):
        pass
    assert model_adapters(model).active is None
    assert not any(p.requires_grad for p in model.parameters())


def test_what_a_person_froze_or_freed_stays_so_through_switching() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(("query",)), name="one", head=head_of(model))
    frozen = {n: t for n, t in adapter_tensors(model, "one").items() if n.endswith("lora_A")}
    for tensor in frozen.values():
        tensor.requires_grad_(False)
    with disabled(model):
        assert not any(p.requires_grad for p in model.parameters())
    adapt(model, LoRA(("value",)), name="two")
    activate(model, "one")
    for name, tensor in adapter_tensors(model, "one").items():
        assert tensor.requires_grad is (name not in frozen)


def test_a_removed_adapters_base_is_forgotten() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(("query",)), name="keep")
    adapt(model, LoRA(("value",)), name="gone", head=head_of(model))
    remove_adapter(model, "gone")
    model.classifier = nn.Linear(32, 7)
    own = model.classifier.weight
    adapt(model, LoRA(("key",)), name="new", head=head_of(model))
    activate(model, None)
    assert model.classifier.weight is own and logits(model).shape == (3, 7)


def test_the_model_stays_a_model_of_its_class() -> None:
    model = tiny_model("bert")
    keys = set(model.state_dict())
    adapt(model, LoRA(("query",)), head=head_of(model))
    query = model.bert.encoder.layer[0].attention.self.query
    assert isinstance(query, nn.Linear) and type(query).__name__ == "AdaptedLinear"
    assert query.weight.shape == (32, 32)  # read directly, as T5 and others do
    added = set(model.state_dict()) - keys
    assert keys <= set(model.state_dict())
    assert {key.rpartition("query.")[2] for key in added} == {"lora_A.default", "lora_B.default"}


def test_any_module_can_be_adapted() -> None:
    model = TwoTower()
    inputs = torch.randn(4, 12), torch.randn(4, 20)
    before, start = anatomy(model), model(*inputs)
    adapt(model, LoRA("all-linear", rank=2, trained_modules=("item.2",)))
    assert torch.equal(model(*inputs), start)
    assert model_adapters(model).adapters["default"].targets == ("user.0", "user.2", "item.0")
    randomise(model)
    assert not torch.allclose(model(*inputs), start)
    remove_adapter(model, "default")
    assert anatomy(model) == before
