"""Where adapters sit: defaults, names, expressions, layers; PEFT's own resolution as oracle."""

import copy
import re
import subprocess
import sys

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from deltafit.adapters.candidates import leaf_name
from deltafit.adapters.structure import (
    final_norm,
    last_blocks,
    layer_kind,
    main_stack,
    repeated_blocks,
)
from deltafit.adapters.targets import DEFAULT_TARGETS, matches, select_targets
from deltafit.errors import DeltafitError, UsageError
from tests.tiny_models import ARCHITECTURES, LAYERS, TwoTower, tiny_model

# Written by hand from the printed models: stack, the defaults within a block, the final norm.
BERT_STYLE = "attention.self.query attention.self.value"
LLAMA = ("model.layers", "self_attn.q_proj self_attn.v_proj", "model.norm")
EXPECTED: dict[str, tuple[str, str, str | None]] = {
    "bert": ("bert.encoder.layer", BERT_STYLE, None),
    **dict.fromkeys(("roberta", "xlm-roberta"), ("roberta.encoder.layer", BERT_STYLE, None)),
    "electra": ("electra.encoder.layer", BERT_STYLE, None),
    "distilbert": ("distilbert.transformer.layer", "attention.q_lin attention.v_lin", None),
    "deberta-v2": (
        "deberta.encoder.layer",
        "attention.self.query_proj attention.self.value_proj",
        None,
    ),
    "mpnet": ("mpnet.encoder.layer", "attention.attn.q attention.attn.v", None),
    "modernbert": ("model.layers", "attn.Wqkv", "model.final_norm"),
    "gpt2": ("transformer.h", "attn.c_attn", "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers", "attention.query_key_value", "gpt_neox.final_layer_norm"),
    "opt": (
        "model.decoder.layers",
        "self_attn.v_proj self_attn.q_proj",
        "model.decoder.final_layer_norm",
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), LLAMA),
}


def adapted_by_peft(model: nn.Module, **settings: object) -> set[str]:
    """Names of the modules of a copy of ``model`` that PEFT puts LoRA layers in."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, **settings)
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix)
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }


def head_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children() if name != model.base_model_prefix]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_of_every_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    stack, parts, norm = EXPECTED[architecture]
    expected = tuple(f"{stack}.{layer}.{p}" for layer in range(LAYERS) for p in parts.split())
    assert select_targets(model, None) == expected
    assert select_targets(model, None, exclude=head_of(model)) == expected
    assert [(found.name, found.length) for found in repeated_blocks(model)] == [(stack, LAYERS)]
    assert final_norm(model) == norm
    assert last_blocks(model, 1) == [f"{stack}.{LAYERS - 1}", *([norm] if norm else [])]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_are_the_same_for_a_model_without_head_or_data(architecture: str) -> None:
    whole = select_targets(tiny_model(architecture), None)
    with torch.device("meta"):
        base = tiny_model(architecture, task="base")
    assert next(base.parameters()).is_meta
    targets = select_targets(base, None)
    assert len(targets) == len(whole)
    assert all(full.endswith(f".{short}") for full, short in zip(whole, targets, strict=True))


def test_every_default_architecture_has_a_tiny_model() -> None:
    assert set(DEFAULT_TARGETS) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"distilbert", "modernbert"}))
def test_defaults_are_those_of_peft(architecture: str) -> None:
    model = tiny_model(architecture)
    known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    # PEFT has no default for MPNet (nor for DistilBERT and ModernBERT): it gets our names.
    targets = None if architecture in known else list(DEFAULT_TARGETS[architecture])
    assert set(select_targets(model, None)) == adapted_by_peft(model, target_modules=targets)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_is_pefts_without_what_lies_outside_the_blocks(architecture: str) -> None:
    model = tiny_model(architecture)
    blocks = main_stack(model).blocks
    # Without the exclusion PEFT 0.21 stumbles over pre_classifier, which ends in "classifier".
    theirs = adapted_by_peft(model, target_modules="all-linear", exclude_modules=["pre_classifier"])
    within_blocks = {name for name in theirs if name.startswith(tuple(f"{b}." for b in blocks))}
    assert set(select_targets(model, "all-linear")) == within_blocks
    assert len(within_blocks) % LAYERS == 0
    outside = {leaf_name(name) for name in theirs - within_blocks}
    assert outside <= {"dense", "out_proj", "embeddings_project"}


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("bert", ("key", "attention.output.dense")),
        ("bert", ("bert.encoder.layer.1.attention.self.query",)),
        ("bert", ("word_embeddings", "query")),
        ("roberta", ("dense",)),  # PEFT and we leave the head's own dense layer alone
        ("gpt2", ("c_proj",)),
        ("gpt2", ("mlp.c_proj", "wte")),
        ("llama", ("q_proj", "down_proj")),
        ("llama", r".*\.layers\.[02]\..*(q|k)_proj"),
        ("bert", r".*layer\.\d+\.output\.dense"),
    ],
)
def test_names_and_expressions_are_pefts(architecture: str, targets: tuple[str, ...] | str) -> None:
    model = tiny_model(architecture)
    theirs = targets if isinstance(targets, str) else list(targets)
    ours = select_targets(model, targets, exclude=head_of(model))
    assert set(ours) == adapted_by_peft(model, target_modules=theirs)
    assert list(ours) == [name for name, _ in model.named_modules() if name in ours]


@pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 2)])
def test_layers_are_pefts(layers: tuple[int, ...]) -> None:
    model = tiny_model("bert")
    theirs = adapted_by_peft(model, target_modules=["query"], layers_to_transform=list(layers))
    assert set(select_targets(model, ("query",), layers=layers)) == theirs


def test_layers_may_count_from_the_end() -> None:
    model = tiny_model("gpt2")
    assert select_targets(model, None, layers=(-1,)) == (f"transformer.h.{LAYERS - 1}.attn.c_attn",)
    assert select_targets(model, None, layers=(-LAYERS, -1, 2)) == select_targets(
        model, None, layers=(0, LAYERS - 1)
    )
    # what is in no block is not adapted where layers are chosen
    assert select_targets(model, ("wte", "c_fc"), layers=(0,)) == ("transformer.h.0.mlp.c_fc",)


def test_the_prefix_of_an_expression_changes_nothing() -> None:
    model = tiny_model("bert")
    assert select_targets(model, r"re:.*\.key") == select_targets(model, r".*\.key")
    assert select_targets(model, r".*\.attention\..*") == tuple(
        name
        for name, module in model.named_modules()
        if ".attention." in name and isinstance(module, nn.Linear)
    )


segment = st.sampled_from(["query", "query_proj", "self", "0", "a"])


@given(module=st.lists(segment, min_size=1, max_size=5), target=st.lists(segment, min_size=1))
def test_a_target_matches_whole_segments_at_the_end(module: list[str], target: list[str]) -> None:
    assert matches(".".join(module), ".".join(target)) == (module[-len(target) :] == target)


@given(name=st.text("aq._1", min_size=1), suffix=st.text("aq_1", min_size=1))
def test_a_longer_word_never_matches(name: str, suffix: str) -> None:
    assert not matches(f"{name}{suffix}", suffix) or name.endswith(".")


# What cannot be chosen: each is one sentence that says what to give instead.


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("qeury",), "'qeury' matches no module. There are query (3 layers, 32→32)"),
        (("query", "q_proj"), "'q_proj' matches no module"),
        (("Query",), "There are query (3 layers, 32→32)"),
        (("attention.slef.query",), "There are query (3 layers, 32→32)"),
        (("zzz",), "word_embeddings (1 layer, 64×32)"),
        (("LayerNorm",), "cannot be adapted (LayerNorm ×7)"),
        (("attention",), "(BertAttention ×3). Inside them are query (3 layers, 32→32), key"),
        (("classifier",), "'classifier' means classifier, which is trained and saved whole"),
        ((), "No target module is named"),
        ("query", r"A string is a regular expression for the whole module name"),
        (r".*\.quary", "There are query (3 layers, 32→32)"),
        ("re:.*(query", "missing ), unterminated subpattern at position 2"),
        (".*LayerNorm", "cannot be adapted (LayerNorm ×7)"),
        ("classifier", "trained and saved whole"),
    ],
)
def test_targets_that_cannot_be_used(targets: tuple[str, ...] | str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        select_targets(tiny_model("bert"), targets, exclude=("classifier",))


def test_every_wrong_name_is_reported_at_once() -> None:
    with pytest.raises(UsageError, match=r"'qeury'.*'vlaue'"):
        select_targets(tiny_model("bert"), ("qeury", "vlaue"))


@pytest.mark.parametrize("layers", [(3,), (0, 7), (-4,)])
def test_layers_out_of_range(layers: tuple[int, ...]) -> None:
    said = f"no layer {layers[-1]}: bert.encoder.layer has 3 blocks, 0 to 2, or -3 to -1"
    with pytest.raises(UsageError, match=re.escape(said)):
        select_targets(tiny_model("bert"), None, layers=layers)


def test_layers_that_hold_no_target() -> None:
    with pytest.raises(UsageError, match=r"hold none of the modules.*word_embeddings"):
        select_targets(tiny_model("bert"), ("word_embeddings",), layers=(0,))
    with pytest.raises(UsageError, match="No layer is chosen"):
        select_targets(tiny_model("bert"), None, layers=())


# Models that no table knows.


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(9)])


class Unknown(nn.Module):
    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.blocks = nn.ModuleList([Block()] * 2 if shared else [Block(), Block()])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)


def test_an_unknown_model_is_adapted_by_structure() -> None:
    targets = select_targets(Unknown(), None)
    assert targets == select_targets(Unknown(), "all-linear")
    assert {name.partition(".")[0] for name in targets} == {"blocks"}
    # out_proj of MultiheadAttention is never called, its weight is read: no adapter works there
    assert [name for name in targets if ".experts." not in name] == [
        f"blocks.{block}.feed.{layer}" for block in (0, 1) for layer in (0, 2)
    ]
    assert layer_kind(Unknown().blocks[0].attention.out_proj) is None
    # the nine experts of a block are no stack of their own
    assert [(stack.name, stack.length) for stack in repeated_blocks(Unknown())] == [("blocks", 2)]
    assert last_blocks(Unknown(), 2) == ["blocks.0", "blocks.1", "norm"]


def test_an_architecture_without_a_table_entry_takes_all_linear_layers() -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_layers": 2, "num_heads": 2}
    kinds = [[["global", "local"], 1]]
    config = AutoConfig.for_model("gpt_neo", attention_types=kinds, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    targets = select_targets(model, None)
    assert targets == select_targets(model, "all-linear")
    assert len(targets) == 12 and all(name.startswith("transformer.h.") for name in targets)
    assert final_norm(model) == "transformer.ln_f"


def test_a_model_without_repeated_blocks_asks_for_names() -> None:
    model = TwoTower()
    with pytest.raises(UsageError, match=r"no repeated blocks.*user\.0 \(1 layer, 12→16\)"):
        select_targets(model, None)
    everything = ("user.0", "user.2", "item.0", "item.2")
    assert select_targets(model, "all-linear") == everything
    assert select_targets(model, "all-linear", exclude=("item",)) == everything[:2]
    assert select_targets(model, ("user.0", "item.2")) == ("user.0", "item.2")
    with pytest.raises(DeltafitError, match="no repeated blocks"):
        select_targets(model, ("user.0",), layers=(0,))
    # the name of the model itself, where it owns a parameter that is trained, excludes nothing
    assert select_targets(model, ("user.0",), exclude=("",)) == ("user.0",)


def test_a_block_that_stands_twice_is_shared() -> None:
    assert main_stack(Unknown(shared=True)).shared
    assert not main_stack(Unknown()).shared
    assert main_stack(Unknown(shared=True)).blocks == ("blocks.0", "blocks.1")


@pytest.mark.slow
def test_transformers_is_not_imported_for_a_plain_model() -> None:
    code = (
        "import sys; from torch import nn; from deltafit.adapters.targets import select_targets; "
        "model = nn.Sequential(nn.Linear(2, 2)); assert select_targets(model, ('0',)) == ('0',); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
