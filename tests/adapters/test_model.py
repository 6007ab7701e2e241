"""Several adapters on one base: added, switched, disabled, removed, and the base as it was."""

import copy
import gc
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    base_parameters,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    model_adapters,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Full, Head, LastBlocks, LoRA, Method
from tests.adapters.adapted import anatomy, head_of, logits, randomise
from tests.tiny_models import (
    ARCHITECTURES,
    DECODERS,
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


def new_head(labels: int, width: int = 32, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "classifier.weight": torch.randn(labels, width, generator=generator),
        "classifier.bias": torch.randn(labels, generator=generator),
    }


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


def test_a_model_converted_while_parts_stood_aside() -> None:
    # As moving to a GPU does: what is not in the module tree must follow when it comes back.
    model = tiny_model("bert")
    start = logits(model)
    adapt(model, LoRA(rank=2), name="two", head=head_of(model), initial=new_head(2))
    adapt(model, LoRA(rank=2), name="five", head=head_of(model), initial=new_head(5))
    model.double()
    for name, labels in (("two", 2), ("five", 5)):
        activate(model, name)
        assert logits(model).shape == (3, labels) and logits(model).dtype == torch.float64
    with disabled(model):
        torch.testing.assert_close(logits(model).float(), start)
    merge_and_unload(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_copy_is_independent() -> None:
    model = tiny_model("gpt2")
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model)
    adapted = logits(model)
    copied = copy.deepcopy(model)
    randomise(copied, seed=9)
    assert torch.equal(logits(model), adapted)
    assert not torch.allclose(logits(copied), adapted)
    with disabled(copied), disabled(model):
        assert torch.equal(logits(copied), logits(model))
    remove_adapter(copied, "default")
    assert torch.equal(logits(model), adapted)


def test_save_pretrained_of_an_adapted_model_writes_its_base(tmp_path: Path) -> None:
    for architecture in ("bert", "gpt2", "llama"):
        model = tiny_model(architecture)
        start = logits(model)
        adapt(model, LoRA(), head=head_of(model))
        randomise(model)
        with disabled(model):
            model.save_pretrained(tmp_path / architecture)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / architecture).eval()
        assert torch.equal(logits(again), start)


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


def test_compiled_and_checkpointed_models_run_the_adapter() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(rank=2))
    randomise(model)
    adapted = logits(model)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled), adapted)
    activate(model, None)
    assert not torch.allclose(logits(compiled), adapted)
    activate(model, "default")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(**tiny_inputs(model)).logits.sum().backward()
    assert all(
        t.grad is not None and t.grad.any() for t in adapter_tensors(model, "default").values()
    )


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_with_a_float32_adapter(
    architecture: str, dtype: torch.dtype
) -> None:
    model = tiny_model(architecture).to(dtype)
    start = logits(model)
    targets = ("word_embeddings",) if architecture == "bert" else ("wte", "embed_tokens")
    embedding = targets[0 if architecture != "llama" else 1]
    linear = {"bert": "query", "gpt2": "c_attn", "llama": "q_proj"}[architecture]
    adapt(model, LoRA((linear, embedding)), head=head_of(model))
    tensors = adapter_tensors(model, "default")
    assert {t.dtype for n, t in tensors.items() if "lora" in n} == {torch.float32}
    assert torch.equal(logits(model), start)
    randomise(model, std=0.1)
    plain = logits(model)
    assert plain.dtype == dtype and not torch.equal(plain, start)
    exact = copy.deepcopy(model).float()
    torch.testing.assert_close(plain.float(), logits(exact), rtol=0.1, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = model(**tiny_inputs(model)).logits
        output.float().sum().backward()
    assert all(t.grad is not None and t.grad.any() for t in tensors.values())
    assert {t.grad.dtype for n, t in tensors.items() if "lora" in n} == {torch.float32}


def test_autocast_over_a_float32_base() -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(("query", "word_embeddings")), head=head_of(model))
    randomise(model)
    exact = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(model).float(), exact, rtol=0.1, atol=0.2)


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


@pytest.mark.parametrize("architecture", DECODERS[:2])
def test_generated_text_goes_through_the_adapter(architecture: str) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_model(architecture).config
    model = AutoModelForCausalLM.from_config(config).eval()
    adapt(model, LoRA(rank=4))
    randomise(model, std=1.0)
    prompt = torch.tensor([[3, 4, 5]])
    words = model.generate(prompt, max_new_tokens=5, do_sample=False)
    with disabled(model):
        base = model.generate(prompt, max_new_tokens=5, do_sample=False)
    assert words.shape[1] > 3 and not torch.equal(words, base)


def test_a_thousand_loads_and_removals_leave_nothing_behind(tmp_path: Path) -> None:
    model, inputs = TwoTower(), (torch.randn(4, 12), torch.randn(4, 20))
    head = ("item.2.weight", "item.2.bias")
    adapt(model, LoRA(("user.0",), rank=1), name="other", head=head)
    randomise(model, "other")
    save_adapter(model, tmp_path, "other")
    stored = read_adapter(tmp_path)
    start, output = anatomy(model), model(*inputs)

    def cycles(count: int) -> tuple[int, int]:
        for _ in range(count):
            load_adapter(model, stored)
            remove_adapter(model, "default")
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    cycles(20)  # caches fill
    tracemalloc.start()
    objects, memory = cycles(10)
    more_objects, more_memory = cycles(1000)
    tracemalloc.stop()
    assert more_objects - objects < 100  # ten a cycle would be the least of leaks
    assert more_memory - memory < 300_000  # the interpreter's own cache of names is some 200 kB
    activate(model, "other")
    assert anatomy(model) == start
    assert torch.equal(model(*inputs), output)
