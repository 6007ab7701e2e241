"""Bottleneck adapters on models: against the formula behind plain layers, by torch's own hooks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    quantise,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.adapters.places import select_places
from deltafit.adapters.saving import CONFIG_FILE
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Bottleneck, LoRA
from tests.adapters.adapted import anatomy, head_of, logits, new_head, randomise
from tests.tiny_models import ARCHITECTURES, SHARED_BLOCKS, TwoTower, tiny_inputs, tiny_model

# The ends of the names of attention's output projection and of the feed-forward part's last layer.
PLACES = {
    "bert": ("attention.output.dense", "output.dense"),
    "roberta": ("attention.output.dense", "output.dense"),
    "xlm-roberta": ("attention.output.dense", "output.dense"),
    "electra": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "deberta-v2": ("attention.output.dense", "output.dense"),
    "mpnet": ("attention.attn.o", "output.dense"),
    "modernbert": ("attn.Wo", "mlp.Wo"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
    "albert": ("attention.dense", "ffn_output"),
}
_LLAMA = ("self_attn.o_proj", "mlp.down_proj")  # of Llama and all that follow it
EVERY = (*ARCHITECTURES, *SHARED_BLOCKS)


def layers_behind(model: nn.Module, architecture: str) -> tuple[set[str], set[str]]:
    """The layers of all blocks by the table above; BERT's two ends are ends of one another."""
    attention, feed_forward = PLACES.get(architecture, _LLAMA)
    names = [name for name, _ in model.named_modules() if "pooler" not in name]
    first = {name for name in names if name.endswith(f".{attention}")}
    return first, {name for name in names if name.endswith(f".{feed_forward}")} - first


@pytest.mark.parametrize("architecture", EVERY)
def test_where_it_sits(architecture: str) -> None:
    model = tiny_model(architecture)
    first, second = layers_behind(model, architecture)
    assert len(first) == len(second) == (1 if architecture in SHARED_BLOCKS else 3)
    assert set(select_places(model, Bottleneck())) == first | second
    assert set(select_places(model, Bottleneck(variant="pfeiffer"))) == second
    last = set(select_places(model, Bottleneck(layers=(-1,))))
    if architecture not in SHARED_BLOCKS:
        assert len(last) == 2 and all(".2." in name for name in last)


def hooked(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A plain model, the paper's formula behind its layers."""

    def behind(name: str) -> Any:
        down, low, up, high = (
            tensors[f"{name}.adapter_{leaf}"] for leaf in ("down", "down_bias", "up", "up_bias")
        )

        def add(module: nn.Module, args: Any, h: Tensor) -> Tensor:
            inner = functional.relu(torch.einsum("sw,...w->...s", down, h) + low)
            return h + torch.einsum("ws,...s->...w", up, inner) + high

        return add

    for name in {key.rpartition(".")[0] for key in tensors if "adapter_" in key}:
        model.get_submodule(name).register_forward_hook(behind(name))
    return model


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("architecture", EVERY)
def test_the_formula_in_float64(architecture: str, variant: Any) -> None:
    model = tiny_model(architecture).double()
    adapt(model, Bottleneck(size=3, variant=variant, activation="relu"))
    randomise(model)
    tensors = adapter_tensors(model, "default")
    first, second = layers_behind(model, architecture)
    sits = second if variant == "pfeiffer" else first | second
    assert {name.rpartition(".")[0] for name in tensors} == sits
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    plain = hooked(tiny_model(architecture).double().requires_grad_(False), leaves)
    found, expected = (m(**tiny_inputs(m)).logits for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    gradients = torch.autograd.grad(found.square().sum(), list(tensors.values()))
    oracle = torch.autograd.grad(expected.square().sum(), list(leaves.values()))
    torch.testing.assert_close(gradients, oracle, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", EVERY)
def test_it_starts_at_the_base_and_leaves_it_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture)
    before, start = anatomy(model), logits(model)
    adapt(model, Bottleneck(size=4), head=head_of(model))
    assert torch.equal(logits(model), start)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(tensor) for tensor in adapter_tensors(model, "default").values()}
    randomise(model)
    changed = logits(model)
    assert not torch.allclose(changed, start, atol=1e-2)
    with disabled(model):
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)
    remove_adapter(model, "default")
    assert torch.equal(logits(model), start) and anatomy(model) == before


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_it_is_saved_and_loaded_whole(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    method = Bottleneck(size=4, variant="pfeiffer")
    adapt(model, method, head=head_of(model))
    randomise(model)
    (tmp_path / CONFIG_FILE).write_text("{}")  # of a LoRA adapter that was saved there before
    save_adapter(model, tmp_path)
    assert not (tmp_path / CONFIG_FILE).exists()  # PEFT has no such method
    stored = read_adapter(tmp_path)
    assert stored.method == method
    assert set(stored.tensors) == set(adapter_tensors(model, "default"))
    other = tiny_model(architecture)
    load_adapter(other, stored)
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(DeltafitError, match=r"does not fit this base|has no parameter"):
        load_adapter(tiny_model("opt" if architecture == "gpt2" else "gpt2"), stored)


def test_several_on_one_base_with_their_own_heads() -> None:
    model = tiny_model("bert")
    before, start, head = anatomy(model), logits(model), head_of(model)
    methods = {
        "two": Bottleneck(size=3),
        "five": LoRA("all-linear", rank=2),  # in the same layers
        "four": Bottleneck(size=6, variant="pfeiffer", activation="tanh"),
    }
    outputs = {}
    for labels, (name, method) in zip((2, 5, 4), methods.items(), strict=True):
        adapt(model, method, name=name, head=head, initial=new_head(labels))
        randomise(model, name, seed=labels)
        outputs[name] = logits(model)
        assert outputs[name].shape == (3, labels)
    for name in ("five", "two", "four", "two"):
        activate(model, name)
        assert torch.equal(logits(model), outputs[name])
    for name in ("two", "five"):
        remove_adapter(model, name)
    activate(model, "four")
    assert torch.equal(logits(model), outputs["four"])
    remove_adapter(model, "four")
    assert torch.equal(logits(model), start) and anatomy(model) == before


def test_it_does_not_merge() -> None:
    model = tiny_model("bert")
    adapt(model, Bottleneck(size=4))
    randomise(model)
    changed, before = logits(model), anatomy(model)
    for merging in (merge, merge_and_unload):
        with pytest.raises(DeltafitError, match="cannot be merged: bottleneck adds computation"):
            merging(model)
        assert torch.equal(logits(model), changed) and anatomy(model) == before


def test_on_a_quantised_base() -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_model("bert")
    quantise(model, "int8")
    start = logits(model)
    adapt(model, Bottleneck(size=4))
    assert torch.equal(logits(model), start)
    randomise(model)
    model(**tiny_inputs(model)).logits.sum().backward()
    assert all(tensor.grad is not None for tensor in adapter_tensors(model, "default").values())


class Block(nn.Module):
    """Attention's layers, and some behind them."""

    def __init__(self, *behind: nn.Module) -> None:
        super().__init__()
        self.attention = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.behind = nn.ModuleList(behind)


@pytest.mark.parametrize(
    "blocks",
    [
        [Block(nn.Linear(8, 4), nn.Linear(4, 6)) for _ in range(2)],  # to another width
        [Block(*(nn.Linear(8, 8) for _ in range(6))) for _ in range(2)],  # experts
        [nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)],  # a packed attention
        [nn.Sequential(nn.Linear(8, 8)) for _ in range(2)],
    ],
    ids=["width", "experts", "packed", "no attention"],
)
def test_blocks_without_such_places_are_refused(blocks: list[nn.Module]) -> None:
    model = nn.Sequential(nn.ModuleList(blocks))
    before = anatomy(model)
    with pytest.raises(DeltafitError, match="no known place behind attention"):
        adapt(model, Bottleneck())
    assert anatomy(model) == before


def test_models_and_layers_that_have_no_place() -> None:
    with pytest.raises(DeltafitError, match="no repeated blocks"):
        adapt(TwoTower(), Bottleneck())
    with pytest.raises(UsageError, match="There is no layer 3"):
        adapt(tiny_model("bert"), Bottleneck(layers=(3,)))
