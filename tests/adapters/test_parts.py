"""Parts of a model that are trained whole: biases, norms, upper blocks, chosen modules."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from deltafit.adapters import adapt, adapter_tensors, load_adapter, read_adapter, save_adapter
from deltafit.adapters.parts import Parts
from deltafit.adapters.structure import main_stack
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import BitFit, FreezeFirst, Method, Modules, Norms
from tests.adapters.adapted import head_of, logits, randomise
from tests.tiny_models import ARCHITECTURES, TwoTower, tiny_inputs, tiny_model

BIASED = (
    "bert",
    "roberta",
    "electra",
    "deberta-v2",
    "gpt2",
    "gpt_neox",
    "opt",
    "qwen2",
)


@pytest.mark.parametrize("architecture", BIASED)
def test_biases_are_those_that_peft_trains(architecture: str) -> None:
    model = tiny_model(architecture)
    found = Parts(model).biases()
    config = peft.LoraConfig(target_modules="all-linear", bias="all", task_type="SEQ_CLS")
    theirs = peft.get_peft_model(model, config).base_model.model
    trained = [n for n, p in theirs.named_parameters() if p.requires_grad and "lora_" not in n]
    inside = f"{theirs.base_model_prefix}."  # of the head PEFT trains a copy
    expected = {n.replace(".base_layer", "") for n in trained if n.startswith(inside)}
    assert expected and {name for name in found if name.startswith(inside)} == expected


def test_biases_by_other_names_and_tables_that_are_none() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert "layers.0.self_attn.in_proj_bias" in Parts(encoder).biases()
    biases = Parts(tiny_model("mpnet")).biases()  # has encoder.relative_attention_bias.weight
    assert biases and all(name.endswith(".bias") for name in biases)


def own_width(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    weight = module.get_parameter("weight")
    return weight.shape[0] if isinstance(module, Conv1D) else weight.shape[-1]


@torch.no_grad()
def forgets_its_inputs_size(module: nn.Module) -> bool:
    x = 10 * torch.randn(4, 5, own_width(module))
    return torch.allclose(module(x), module(100 * x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_are_what_gives_the_same_for_larger_inputs(architecture: str) -> None:
    model = tiny_model(architecture)
    holding = {
        name: module
        for name, module in model.named_modules()
        if module._parameters and not isinstance(module, nn.Embedding)
    }
    norms = {name for name, module in holding.items() if forgets_its_inputs_size(module)}
    expected = {n for n, _ in model.named_parameters() if n.rpartition(".")[0] in norms}
    assert expected and set(Parts(model).norms()) == expected


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_above_blocks_has_no_say_in_what_leaves_them(architecture: str, count: int) -> None:
    """Everything else has: it is frozen because it comes before."""
    model = tiny_model(architecture).requires_grad_(True)
    above = set(Parts(model).above_blocks(count))
    entering: list[torch.Tensor] = []
    block = model.get_submodule(main_stack(model).blocks[count])
    block.register_forward_pre_hook(
        lambda m, args, kwargs: entering.extend([*args, *kwargs.values()][:1]), with_kwargs=True
    )
    model(**tiny_inputs(model))
    entering[0].sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    everything = {name for name, _ in model.named_parameters()}
    # Relative positions go into every block beside the states.
    beside = {n for n in everything - above if "rel_embeddings" in n or "encoder.LayerNorm" in n}
    beside |= {n for n in everything - above if "relative_attention_bias" in n}
    assert above.isdisjoint(reached)
    assert everything - above == reached | beside


def test_modules_by_names_and_by_expression() -> None:
    model = tiny_model("bert")
    names = [name for name, _ in model.named_parameters()]

    def chosen(pattern: str | tuple[str, ...]) -> set[str]:
        return set(Parts(model).in_modules(pattern))

    assert chosen(("attention",)) == {n for n in names if ".attention." in n}
    assert chosen(("layer.1", "pooler")) == {n for n in names if ".layer.1." in n or "pooler" in n}
    assert chosen(("self",)) == {n for n in names if ".self." in n}  # and no self_attn
    assert chosen(r"re:.*\.\d\.output") == {n for n in names if ".output." in n} - {
        n for n in names if ".attention.output." in n
    }
    assert chosen("re:.*") == set(names)


@pytest.mark.parametrize(
    ("architecture", "method", "said"),
    [
        (
            "llama",
            BitFit(),
            r"LlamaForSeq.* has no biases in its blocks \(model\.layers\)\. .*norms",
        ),
        ("modernbert", BitFit(), "has no biases in its blocks"),  # its head has one
        ("bert", FreezeFirst(3), r"bert\.encoder\.layer has 3 blocks, so with the first 3 frozen"),
        ("albert", FreezeFirst(1), "uses the same block for several layers .* cannot be frozen"),
        ("bert", Modules("atention"), r"'atention' names no module of BertFor.*Near it are attent"),
        (
            "bert",
            Modules(("qeury", "xyz")),
            r"'qeury' names.*Near it are query.* 'xyz' names.*There",
        ),
        (
            "bert",
            Modules("re:query"),
            r"'query' matches no module .*Near it are query.* whole name",
        ),
        ("bert", Modules("re:(query"), r"'\(query' is not a regular expression: missing \)"),
        ("bert", Modules("dropout"), "'dropout' names no module .* that has parameters"),
    ],
)
def test_refused_in_sentences(architecture: str, method: Method, said: str) -> None:
    model = tiny_model(architecture)
    with pytest.raises(DeltafitError, match=said):
        adapt(model, method, head=head_of(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_without_blocks() -> None:
    model = TwoTower()
    adapt(model, BitFit())
    assert set(adapter_tensors(model, "default")) == {
        *("user.0.bias", "user.2.bias", "item.0.bias", "item.2.bias"),
    }
    with pytest.raises(UsageError, match=r"TwoTower has no normalisation layers with parameters\."):
        adapt(TwoTower(), Norms())
    with pytest.raises(DeltafitError, match="TwoTower has no repeated blocks"):
        adapt(TwoTower(), FreezeFirst(1))


def test_a_norm_with_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(DeltafitError, match=r"'1' keeps running statistics \(BatchNorm1d\)"):
        adapt(model, Norms())


@pytest.mark.parametrize("method", [FreezeFirst(1), Modules("wte"), Modules("lm_head")], ids=str)
def test_half_of_a_tied_parameter_is_refused(method: Method) -> None:
    model = AutoModelForCausalLM.from_config(tiny_model("gpt2").config)
    with pytest.raises(
        DeltafitError, match=r"are one tied parameter .*Choose both.*Untie them fir"
    ):
        adapt(model, method)


def test_both_halves_of_a_tied_parameter_are_one(tmp_path: Path) -> None:
    model, other = (
        AutoModelForCausalLM.from_config(tiny_model("gpt2").config).eval() for _ in range(2)
    )
    other.load_state_dict(model.state_dict())
    adapt(model, Modules(("wte", "lm_head")))
    assert set(adapter_tensors(model, "default")) == {"transformer.wte.weight"}
    randomise(model)
    save_adapter(model, tmp_path)
    load_adapter(other, read_adapter(tmp_path))
    assert other.lm_head.weight is other.transformer.wte.weight
    assert torch.equal(logits(other), logits(model))
