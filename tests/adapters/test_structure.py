"""Blocks and heads of models that no table knows: hybrid stacks, lists of heads, no stack."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from deltafit.adapters import adapt, adapter_tensors
from deltafit.adapters.structure import known_head, main_stack, repeated_blocks
from deltafit.adapters.targets import select_targets
from deltafit.errors import UsageError
from deltafit.methods import LastBlocks


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(8, 8)


class Hybrid(nn.Module):
    def __init__(self, *kinds: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind() for kind in kinds)
        self.head = nn.Linear(8, 2)


def mlp(*widths: int) -> nn.Sequential:
    layers = (nn.Linear(a, b) for a, b in pairwise(widths))
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


class Multitask(nn.Module):
    """Residual blocks, then a list of heads of one class."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(8, 32, 8) for _ in range(4))
        self.heads = nn.ModuleList(mlp(8, 8, 2 + n) for n in range(heads))

    def forward(self, x: Tensor) -> list[Tensor]:
        for block in self.blocks:
            x = x + block(x)
        return [head(x) for head in self.heads]


def test_blocks_of_several_classes_in_turn_are_a_stack() -> None:
    model = Hybrid(Attention, StateSpace, Attention, StateSpace)
    inside = ("layers.0.q", "layers.1.in_proj", "layers.2.q", "layers.3.in_proj")
    assert select_targets(model, None) == select_targets(model, "all-linear") == inside
    assert select_targets(model, None, layers=(-1,)) == inside[-1:]
    adapt(model, LastBlocks(1), head=("head.weight", "head.bias"))
    assert {n.rpartition(".")[0] for n in adapter_tensors(model, "default")} == {
        "layers.3.in_proj",
        "head",
    }


def test_a_hybrid_of_transformers() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "jamba", vocab_size=64, num_hidden_layers=4, num_key_value_heads=2, attn_layer_period=2,
        attn_layer_offset=1, num_experts=2, use_mamba_kernels=False, mamba_d_state=4,
        mamba_dt_rank=4, pad_token_id=1, **sizes,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert len({type(block) for block in model.model.layers}) == 2
    assert main_stack(model).name == "model.layers"
    targets = select_targets(model, "all-linear")
    assert targets == select_targets(model, None)
    assert {name.split(".")[2] for name in targets} == {"0", "1", "2", "3"}
    assert known_head(model) == ("score",)


@pytest.mark.parametrize("heads", [2, 3, 5])
def test_a_list_of_heads_is_no_stack(heads: int) -> None:
    model = Multitask(heads)
    assert [stack.name for stack in repeated_blocks(model)] == ["blocks"]
    expected = tuple(f"blocks.{block}.{layer}" for block in range(4) for layer in (0, 2))
    assert select_targets(model, None) == select_targets(model, "all-linear") == expected
    assert select_targets(model, ("heads.0.2",)) == ("heads.0.2",)  # who names it gets it


def test_a_small_encoder_beside_a_large_decoder_is_a_stack() -> None:
    model = nn.Module()
    model.encoder = nn.ModuleList(mlp(4, 8, 4) for _ in range(9))
    model.decoder = nn.ModuleList(mlp(16, 64, 16) for _ in range(3))
    assert [stack.name for stack in repeated_blocks(model)] == ["encoder", "decoder"]
    assert main_stack(model).name == "decoder"  # of fewer blocks, but most of the model
    assert len(select_targets(model, None)) == 24


def test_without_a_stack_a_head_that_can_be_known_is_left_out() -> None:
    assert select_targets(Hybrid(Attention, StateSpace), "all-linear") == (
        "layers.0.q",
        "layers.1.in_proj",
    )
    # nothing tells the last of equals from the others
    flat = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert select_targets(flat, "all-linear") == ("0", "2")
    assert known_head(nn.Module()) == known_head(nn.Sequential(nn.Linear(2, 2))) == ()


@pytest.mark.parametrize("targets", [None, "all-linear", ".*", ("weight",)])
def test_a_single_layer_is_no_model(targets: str | tuple[str, ...] | None) -> None:
    with pytest.raises(UsageError, match=r"is itself a Linear.*nn\.Sequential\(model\)"):
        select_targets(nn.Linear(4, 4), targets)
