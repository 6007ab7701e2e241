"""Structure and cost before training, against hand counts and against what autograd keeps."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from deltafit.adapters import adapt
from deltafit.adapters.candidates import candidates
from deltafit.adapters.inspection import Inspection, inspect_model
from deltafit.adapters.structure import last_blocks, parameters_of_last_blocks
from deltafit.adapters.targets import select_targets
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import LoRA
from tests.tiny_models import (
    ARCHITECTURES,
    LAYERS,
    SHARED_BLOCKS,
    TwoTower,
    tiny_inputs,
    tiny_model,
)

HEAD = ("classifier",)


@pytest.fixture(scope="module")
def bert_base() -> BertForSequenceClassification:
    """BERT base uncased's shape, without a single value."""
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(num_labels=2))


def inspected(model: nn.Module, *names: str, rank: int = 8, **settings: object) -> Inspection:
    targets = select_targets(model, names or None, exclude=HEAD)
    return inspect_model(model, targets, rank=rank, head=HEAD, **settings)


# Figures found in print, for BERT base.


def test_query_and_value_of_bert_base(bert_base: BertForSequenceClassification) -> None:
    found = inspected(bert_base)
    assert [(matrix.name, matrix.count) for matrix in found.matrices] == [
        ("query", 12),
        ("value", 12),
    ]
    for matrix in found.matrices:
        assert (matrix.inputs, matrix.outputs) == (768, 768)
        assert (matrix.weight_values, matrix.adapter_values) == (589_824, 12_288)
        assert matrix.times_fewer == 48
    assert found.parameters == 109_483_778  # as counted for bert-base-uncased with two labels
    assert found.adapter_parameters == 294_912  # published as 0.29 M
    assert found.head_parameters == 768 * 2 + 2
    assert found.adapter.trainable == 294_912 + 1_538
    assert round(100 * found.adapter.share, 2) == 0.27  # published as 0.26 % of 110 M
    assert found.full.share == 1
    assert found.adapter.saved_bytes == 4 * (294_912 + 1_538)
    assert round(4 * found.adapter_parameters / 1e6, 2) == 1.18  # MB
    assert round(found.full.saved_bytes / 2**20) == 418  # published as 420 MB


def test_three_projections_and_the_two_countings(bert_base: BertForSequenceClassification) -> None:
    found = inspected(bert_base, "query", "key", "value")
    assert found.adapter_parameters == 442_368
    alone = inspect_model(bert_base, found.targets).adapter
    assert alone.trainable == 442_368
    assert alone.state_values_3x == 1_327_104  # published as 1.32 M
    assert alone.state_values_4x == 1_769_472
    assert found.full.state_values_3x == pytest.approx(330e6, rel=0.01)  # published as 330 M
    assert found.full.state_values_4x == 4 * found.parameters


def test_memory_by_part(bert_base: BertForSequenceClassification) -> None:
    found = inspected(bert_base)
    adapter, full = found.adapter.memory, found.full.memory
    assert full.weights == full.gradients == 4 * found.parameters
    assert adapter.weights == full.weights + 4 * found.adapter_parameters
    assert adapter.gradients == 4 * found.adapter.trainable
    for memory in (adapter, full):
        assert memory.optimiser == 2 * memory.gradients
        parts = (memory.weights, memory.gradients, memory.optimiser, memory.activations)
        assert memory.total == sum(parts)
    # without activations: exactly the 4 of "4×" for float32
    assert full.total - full.activations == 4 * found.full.state_values_4x
    half = inspected(bert_base.to(torch.bfloat16))
    assert half.full.memory.weights == 2 * found.parameters
    assert half.adapter.memory.weights == 2 * found.parameters + 4 * found.adapter_parameters
    bert_base.to(torch.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameter_counts_are_those_of_the_adapted_model(architecture: str) -> None:
    model = tiny_model(architecture)
    targets = select_targets(model, None)
    found = inspect_model(model, targets, rank=3)
    adapt(model, LoRA(rank=3))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.adapter.trainable == found.adapter_parameters == trained
    assert found.adapter.share == trained / sum(p.numel() for p in model.parameters())
    # inspecting the adapted model again counts the base alone and shows its own classes
    again = inspect_model(model, targets, rank=3)
    assert again == replace(found, tree=again.tree)
    assert again.tree == found.tree


def test_an_embedding_costs_rank_times_vocabulary_plus_width() -> None:
    model = tiny_model("gpt2")
    found = inspect_model(model, select_targets(model, ("wte",)), rank=4)
    assert found.adapter_parameters == 4 * (64 + 32)
    assert found.matrices[0].weight_values == 64 * 32


# The tree.


def shown(found: Inspection) -> list[str]:
    return [
        f"{'  ' * line.depth}{line.name} {line.kind} {line.parameters}{' *' * line.target}"
        for line in found.tree
    ]


def test_equal_blocks_fold_to_one_line() -> None:
    found = inspected(tiny_model("bert"))
    assert shown(found)[:12] == [
        " BertForSequenceClassification 27891",
        "  bert BertModel 27792",
        "    embeddings BertEmbeddings 4224",
        "      word_embeddings Embedding 2048",
        "      position_embeddings Embedding 2048",
        "      token_type_embeddings Embedding 64",
        "      LayerNorm LayerNorm 64",
        "    encoder BertEncoder 22512",
        "      layer.0-2 ×3 BertLayer 7504",
        "        attention BertAttention 4288",
        "          self BertSelfAttention 3168",
        "            query Linear 1056 *",
    ]
    assert found.tree[8].copies == LAYERS
    assert 3 * found.tree[8].parameters == found.tree[7].parameters
    assert found.tree[11].shape == (32, 32)
    assert found.tree[9].shape is None
    assert sum(line.target for line in found.tree) == 2


def test_blocks_that_differ_do_not_fold() -> None:
    model = tiny_model("modernbert")  # its first block has no attention norm
    names = [line.name for line in inspect_model(model, ()).tree]
    assert "layers.0" in names and "layers.1-2 ×2" in names
    bert = tiny_model("bert")
    found = inspect_model(bert, select_targets(bert, None, layers=(-1,)))
    assert [line.name for line in found.tree if line.kind == "BertLayer"] == [
        "layer.0-1 ×2",
        "layer.2",
    ]
    whole = inspect_model(bert, (), full=True).tree
    assert [line.name for line in whole if line.kind == "BertLayer"] == [
        f"layer.{index}" for index in range(LAYERS)
    ]


def test_modules_keep_their_order() -> None:
    names = [line.name for line in inspect_model(tiny_model("gpt2"), ()).tree if line.depth == 2]
    assert names == ["wte", "wpe", "h.0-2 ×3", "ln_f"]
    tree = inspect_model(TwoTower(), ("user.0",)).tree
    assert [line.name for line in tree] == ["", "user.0", "user.2", "item.0", "item.2"]
    assert [line.target for line in tree] == [False, True, False, False, False]


def test_an_inspection_is_json() -> None:
    model = tiny_model("bert")
    found = inspect_model(model, select_targets(model, None), head=HEAD, batch_size=2)
    content = json.loads(json.dumps(found.to_dict()))
    assert content == found.to_dict()
    assert content["stack"] == "bert.encoder.layer" and content["blocks"] == LAYERS
    assert content["model_type"] == "bert"
    assert content["full"]["memory"]["total"] == found.full.memory.total
    assert {candidate["name"] for candidate in content["candidates"]} >= {"query", "key", "dense"}
    assert "classifier" not in {candidate["name"] for candidate in content["candidates"]}


# Parts of a model by name.


@pytest.mark.parametrize("count", [0, -1, 4])
def test_last_blocks_that_do_not_exist(count: int) -> None:
    with pytest.raises(UsageError, match=r"has 3 blocks.*from 1 to 3"):
        last_blocks(tiny_model("bert"), count)


def test_parameters_of_the_last_blocks() -> None:
    model = tiny_model("gpt2")
    names = parameters_of_last_blocks(model, 2)
    assert names == tuple(
        name
        for name, _ in model.named_parameters()
        if name.startswith(("transformer.h.1.", "transformer.h.2.", "transformer.ln_f."))
    )
    adapt(model, LoRA())
    assert parameters_of_last_blocks(model, 2) == names


def test_candidates_are_grouped_by_name() -> None:
    found = {str(candidate) for candidate in candidates(tiny_model("gpt2"), exclude=("score",))}
    assert found == {
        "wte (1 layer, 64×32)",
        "wpe (1 layer, 64×32)",
        "c_attn (3 layers, 32→96)",
        "c_proj (6 layers, 32→32, 48→32)",
        "c_fc (3 layers, 32→48)",
    }


@pytest.mark.parametrize("architecture", SHARED_BLOCKS)
def test_shared_blocks_take_adapters_and_refuse_last_block_training(architecture: str) -> None:
    model = tiny_model(architecture)
    assert len(select_targets(model, None)) == 6
    with pytest.raises(DeltafitError, match="the same block for several layers"):
        last_blocks(model, 1)
    with pytest.raises(DeltafitError, match="no repeated blocks"):
        last_blocks(TwoTower(), 1)


# The estimate of activations, against the bytes that autograd really keeps.


def kept_by_autograd(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> int:
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs).logits.sum()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_estimated_activations_are_near_those_kept(architecture: str) -> None:
    model = tiny_model(architecture).train()
    inputs = tiny_inputs(model, batch=8, length=48)
    found = inspect_model(
        model, select_targets(model, None), rank=2, batch_size=8, sequence_length=48
    )
    full = kept_by_autograd(model, inputs)
    adapt(model, LoRA(rank=2))
    adapter = kept_by_autograd(model, inputs)
    assert found.full.memory.activations == pytest.approx(full, rel=0.35)
    assert found.adapter.memory.activations == pytest.approx(adapter, rel=0.25)


def test_blocks_before_the_first_target_keep_nothing() -> None:
    model = tiny_model("bert")

    def activations(*layers: int) -> int:
        targets = select_targets(model, None, layers=layers)
        return inspect_model(model, targets).adapter.memory.activations

    assert activations(0) > activations(1) > activations(2) > 0
    assert activations(0) < activations(0, 1, 2)
    embedded = inspect_model(model, select_targets(model, ("word_embeddings",)))
    assert 0 < embedded.adapter.memory.activations < activations(0)
    assert inspect_model(model, ()).adapter.memory.activations == 0


def test_a_plain_model_counts_as_one_block() -> None:
    found = inspect_model(TwoTower(), ("user.0",), rank=2, batch_size=4, sequence_length=1)
    outputs, width, inputs = 16 + 8 + 16 + 8, 8, 12
    assert found.adapter.memory.activations == 4 * 4 * (outputs + width + inputs + 2)
    assert found.blocks == 0 and found.stack is None and found.model_type is None
