"""PEFT as oracle: its adapters load here and ours there to the same logits; so does one step."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merge,
    read_adapter,
    remove_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError
from deltafit.methods import Head, LoRA
from tests.adapters.adapted import EXACT, anatomy, head_of, logits, randomise, theirs_on_disk
from tests.tiny_models import ARCHITECTURES, SHARED_BLOCKS, TwoTower, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RSLORA = "alpha/sqrt(r)"
CLOSE = {"rtol": 2e-4, "atol": 2e-4}  # float32, in sums of another order
# What is adapted, beside the defaults of every architecture: names of all layer types, an
# expression, chosen blocks, patterns, scalings.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in (*ARCHITECTURES, *SHARED_BLOCKS)),
    *((name, {"target_modules": "all-linear"}) for name in ("bert", "distilbert", "gpt2", "llama")),
    ("bert", {"target_modules": ("word_embeddings", "query"), "rank": 3}),
    ("roberta", {"target_modules": ("word_embeddings", "dense"), "scaling": RSLORA}),
    ("distilbert", {"target_modules": ("word_embeddings", "lin1"), "scaling": "alpha"}),
    ("gpt2", {"target_modules": ("wte", "c_attn", "mlp.c_proj"), "scaling": "alpha"}),
    ("llama", {"target_modules": ("embed_tokens", "q_proj"), "scaling": RSLORA}),
    ("gemma", {"target_modules": ("embed_tokens", "q_proj")}),
    ("electra", {"target_modules": ("word_embeddings", "embeddings_project")}),
    ("bert", {"target_modules": r".*\.(query|intermediate\.dense)", "layers": (0, -1)}),
    ("llama", {"target_modules": r".*\.layers\.[02]\..*(q|down)_proj"}),
    ("gpt2", {"layers": (1,), "dropout": 0.3}),
    *(
        (
            "bert",
            {
                "target_modules": ("query", "value", "word_embeddings"),
                "rank_pattern": (("layer.1.attention.self.query", 2), ("value", 5)),
                "alpha_pattern": (("value", 7.5), ("word_embeddings", 3)),
                "scaling": scaling,
            },
        )
        for scaling in ("alpha/r", "alpha", RSLORA)
    ),
    ("gpt2", {"trained_modules": ("transformer.ln_f", "transformer.h.2")}),
    ("bert", {"target_modules": ("key",), "trained_modules": ("bert.pooler",)}),
]


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_ours_loads_in_peft(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(architecture)
    adapt(model, LoRA(**settings), head=head_of(model))
    randomise(model)
    adapted = logits(model)
    save_adapter(model, tmp_path, base_name="somewhere", task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    torch.testing.assert_close(
        logits(theirs), adapted, rtol=2e-4, atol=2e-4
    )  # sums in another order
    assert not torch.allclose(adapted, logits(tiny_model(architecture)), atol=1e-2)
    # the same tensors, none missing, none of theirs left as it was made
    stored = load_file(tmp_path / "adapter_model.safetensors")
    own = {
        name: tensor
        for name, tensor in peft.get_peft_model_state_dict(theirs).items()
        if not name.endswith("base_layer.weight")
    }
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in stored.items()}
    if not settings:
        return
    # and back through PEFT's own writing, which drops our metadata
    theirs.save_pretrained(tmp_path / "again")
    again = tiny_model(architecture)
    load_adapter(again, read_adapter(tmp_path / "again"))
    torch.testing.assert_close(
        logits(again), adapted, rtol=2e-4, atol=2e-4
    )  # sums in another order


THEIRS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("bert", "roberta", "electra", "gpt2", "llama", "opt", "gpt_neox")),
    ("distilbert", {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier"]}),
    ("bert", {"target_modules": ["query", "word_embeddings"], "use_rslora": True, "r": 3}),
    ("gpt2", {"target_modules": ["wte", "c_attn", "c_fc"], "fan_in_fan_out": True}),
    ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
    ("gemma", {"target_modules": ["embed_tokens", "up_proj"]}),
    ("llama", {"target_modules": r".*\.(k|gate)_proj", "init_lora_weights": "gaussian"}),
    ("bert", {"target_modules": "all-linear", "exclude_modules": ["key"]}),
    *(
        (
            "bert",
            {
                "target_modules": ["query", "value", "dense"],
                "rank_pattern": {"query": 2, r"layer\.[01].*dense": 5, "^bert.pooler.dense": 1},
                "alpha_pattern": {r".*\.1\..*value": 32, "query": 1},
                "use_rslora": rslora,
            },
        )
        for rslora in (False, True)
    ),
    ("bert", {"modules_to_save": ["pooler"], "lora_dropout": 0.2}),
]


@pytest.mark.parametrize(("architecture", "settings"), THEIRS, ids=str)
def test_theirs_loads_here(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = theirs_on_disk(tiny_model(architecture), tmp_path, **settings)
    model = tiny_model(architecture)
    before, start = anatomy(model), logits(model)
    stored = read_adapter(tmp_path)
    assert stored.notes == ()
    load_adapter(model, stored)
    adapted = logits(model)
    torch.testing.assert_close(adapted, logits(theirs), **EXACT)
    assert not torch.allclose(adapted, start, atol=1e-2)
    assert not any(p.requires_grad for p in model.parameters())
    merge(model)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)
    model = tiny_model(architecture)
    load_adapter(model, stored)
    # our own writing of it reads back to the same, here and there
    save_adapter(model, tmp_path / "ours", task_type="SEQ_CLS")
    again, there = tiny_model(architecture), tiny_model(architecture)
    load_adapter(again, read_adapter(tmp_path / "ours"))
    assert torch.equal(logits(again), adapted)
    there = peft.PeftModel.from_pretrained(there, tmp_path / "ours").eval()
    torch.testing.assert_close(logits(there), adapted, **EXACT)
    remove_adapter(again, "default")
    assert {**anatomy(again), "identities": 0} == {**before, "identities": 0}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("bert", {"target_modules": ("query", "value", "word_embeddings")}),
        ("roberta", {"scaling": RSLORA, "rank": 3}),
        ("distilbert", {"target_modules": "all-linear"}),
        ("gpt2", {"target_modules": ("c_attn", "wte"), "scaling": "alpha", "alpha": 2}),
        ("llama", {"target_modules": ("q_proj", "down_proj")}),
        ("gemma", {"target_modules": ("embed_tokens",)}),
    ],
    ids=str,
)
def test_one_step_of_sgd_is_pefts(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    adapt(model, LoRA(**settings), head=head_of(model))
    randomise(model, std=0.1)
    for name, tensor in adapter_tensors(model, "default").items():
        # PEFT too gives the padding row no gradient, but lets B see what stands there: zero it
        if name.endswith(("embeddings.lora_A", "embed_tokens.lora_A", "wte.lora_A")):
            tensor.data[:, model.config.pad_token_id] = 0
    save_adapter(model, tmp_path / "start", task_type="SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(
        tiny_model(architecture), tmp_path / "start", is_trainable=True
    ).eval()
    labels = torch.tensor([0, 2, 1])
    for one in (model, theirs):
        trained = [p for p in one.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=0.1)
        functional.cross_entropy(one(**tiny_inputs(model)).logits, labels).backward()
        optimiser.step()
    save_adapter(model, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    start, ours, peers = (
        load_file(tmp_path / folder / "adapter_model.safetensors")
        for folder in ("start", "ours", "theirs")
    )
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, peers[name], rtol=1e-6, atol=1e-6)
        assert not torch.equal(tensor, start[name]), name


def test_a_model_without_heads_or_transformers(tmp_path: Path) -> None:
    inputs = torch.randn(4, 12), torch.randn(4, 20)
    model = TwoTower()
    adapt(model, LoRA(("user.0", "item.2"), rank=2, trained_modules=("user.2",)))
    randomise(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(TwoTower(), tmp_path)
    torch.testing.assert_close(theirs(*inputs), model(*inputs), **EXACT)


def test_a_causal_language_model_with_tied_weights(tmp_path: Path) -> None:
    def lm() -> nn.Module:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(tiny_model("gpt2").config).eval()

    model = lm()
    adapt(model, LoRA(("wte", "c_attn")))
    randomise(model)
    save_adapter(model, tmp_path / "ours", task_type="CAUSAL_LM")
    there = peft.PeftModel.from_pretrained(lm(), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(there), logits(model), **EXACT)
    theirs = theirs_on_disk(lm(), tmp_path / "theirs", "CAUSAL_LM", target_modules=["wte"])
    here = lm()
    load_adapter(here, read_adapter(tmp_path / "theirs"))
    torch.testing.assert_close(logits(here), logits(theirs), **EXACT)


class Twins(nn.Module):
    """Names that are the end of other names: each must get its own rank and alpha."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"query": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["query"](self.query(x))


def test_a_name_that_is_the_end_of_another(tmp_path: Path) -> None:
    # "query" is another's end; what is set for "inner.query" is the default
    settings = {
        "rank_pattern": (("inner.query", 4), ("query", 2)),
        "alpha_pattern": (("inner.query", 16), ("query", 1)),
    }
    model, x = Twins(), torch.randn(3, 4)
    adapt(model, LoRA(("query",), rank=4, **settings))  # type: ignore[arg-type]
    randomise(model)
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(Twins(), tmp_path / "ours")
    torch.testing.assert_close(theirs(x), model(x), **EXACT)
    pattern = {"rank_pattern": {"^query": 2}, "alpha_pattern": {"^query": 1}}
    theirs = theirs_on_disk(Twins(), tmp_path / "theirs", None, target_modules=["query"], **pattern)
    model = Twins()
    load_adapter(model, read_adapter(tmp_path / "theirs"))
    torch.testing.assert_close(model(x), theirs(x), **EXACT)


def test_an_adapter_on_one_of_two_modules_of_that_name(tmp_path: Path) -> None:
    theirs = theirs_on_disk(Twins(), tmp_path, None, target_modules="query")
    model, x = Twins(), torch.randn(3, 4)
    load_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(model(x), theirs(x), **EXACT)


def test_the_configuration_has_the_fewest_keys(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(), head=head_of(model))
    save_adapter(model, tmp_path, base_name="bert-base", task_type="SEQ_CLS")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "bert-base",
        "inference_mode": True,
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["query", "value"],
        "bias": "none",
        "modules_to_save": ["classifier"],
    }


def test_a_lone_parameter_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(), head=["classifier.weight"])
    with pytest.raises(DeltafitError, match=r"'classifier\.weight' is trained but its whole"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_methods_that_peft_does_not_know_leave_no_configuration(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, LoRA(), name="lora")
    save_adapter(model, tmp_path, "lora")
    adapt(model, Head(), name="head", head=head_of(model))
    save_adapter(model, tmp_path, "head")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]
    assert read_adapter(tmp_path).method == Head()
