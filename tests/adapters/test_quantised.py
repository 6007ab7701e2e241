"""Linear layers in few bits: what they hold, what they compute, and that adapters sit on them."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification

from deltafit.adapters import (
    QUANTISED,
    adapt,
    adapter_tensors,
    base_sizes,
    dequantise,
    disabled,
    layer_state,
    load_adapter,
    merge,
    merge_and_unload,
    quantisable,
    quantisation_of,
    quantise,
    read_adapter,
    save_adapter,
    unmerge,
    view_of,
)
from deltafit.adapters.quantised import QuantisedLinear
from deltafit.errors import DeltafitError
from deltafit.methods import METHODS, DeltaMethod, LastBlocks, LoRA
from tests.adapters.adapted import EXACT, bits, head_of, logits, randomise
from tests.tiny_models import VOCABULARY, tiny_inputs, tiny_model

# QLoRA, arXiv:2305.14314, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
DELTA_METHODS = [name for name, method in METHODS.items() if issubclass(method, DeltaMethod)]
# Of the largest value: dense and quantised products are the same sums in the same order.

kinds = pytest.mark.parametrize("kind", QUANTISED)


def stack(kind: str, inputs: int = 70, outputs: int = 24) -> tuple[nn.Sequential, Tensor]:
    """Two blocks of one quantised layer each, and the weight that the first one had."""
    torch.manual_seed(2)
    blocks = [nn.Sequential(nn.Linear(inputs, outputs)) for _ in range(2)]
    blocks[1] = nn.Sequential(nn.Linear(outputs, inputs))
    model = nn.Sequential(*blocks)
    before = model[0][0].weight.detach().clone()
    quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
    return model, before


def test_int8_is_each_outputs_largest_weight_in_127_steps() -> None:
    model, before = stack("int8")
    step = before.abs().amax(1, keepdim=True) / 127
    difference = model[0][0].dense() - before
    # Half a step, and what half precision takes.
    assert (difference.abs() <= 0.5 * step + before.abs() * 2**-10).all()
    assert difference.abs().max() > 0.1 * step.min(), "nothing was rounded"


def test_nf4_is_the_papers_table_times_each_blocks_largest_weight() -> None:
    model, before = stack("nf4", inputs=128)
    blocks = before.view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    nearest = table[(blocks / largest).unsqueeze(-1).sub(table).abs().argmin(-1)]
    found = model[0][0].dense().view(-1, 64)
    scales = found.abs().amax(1, keepdim=True)
    torch.testing.assert_close(found / scales, nearest, rtol=0, atol=1e-6)
    torch.testing.assert_close(scales, largest, rtol=2e-2, atol=0)  # 8 bits of their own


@kinds
def test_few_bits_are_kept(kind: str) -> None:
    model = tiny_model("bert")
    names, sizes = quantisable(model), base_sizes(model)
    quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
    assert quantisation_of(model) == kind and quantisation_of(tiny_model("bert")) is None
    quantised = [n for n, m in model.named_modules() if isinstance(m, QuantisedLinear)]
    assert tuple(quantised) == names and len(names) == 3 * 6
    assert all(".layer." in name for name in names), "embeddings, pooler and head stay"
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        inside = module in names and name.endswith("weight")
        assert parameter.is_floating_point() != inside
        if inside:
            assert parameter.nbytes == sizes[name] * (1 if kind == "int8" else 0.5)
    assert base_sizes(model) == sizes


@kinds
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "llama", "qwen3", "t5"])
def test_a_quantised_model_computes_with_the_rounded_weights(kind: str, architecture: str) -> None:
    model = tiny_t5() if architecture == "t5" else tiny_model(architecture)
    quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
    dense = copy.deepcopy(model)
    dequantise(dense)
    assert quantisation_of(dense) is None
    inputs = tiny_inputs(model) | {"input_ids": whole_rows(model)}
    with torch.no_grad():
        found, expected = model(**inputs).logits, dense(**inputs).logits
        model.train(), dense.train()
        torch.manual_seed(0)
        trained = model(**inputs).logits
        torch.manual_seed(0)
        expected_trained = dense(**inputs).logits
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(trained, expected_trained, **EXACT)


def whole_rows(model: nn.Module) -> Tensor:
    """Words that end in the end of the text, which T5 insists on."""
    ids = tiny_inputs(model)["input_ids"].clone()  # type: ignore[arg-type]  # transformers' model
    ids[:, -1] = 2
    return ids


def tiny_t5() -> nn.Module:
    """T5 casts what it feeds one of its layers to the dtype of that layer's weight."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "t5", vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, num_labels=3,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


@kinds
@pytest.mark.parametrize("name", DELTA_METHODS)
def test_the_law_holds_on_quantised_layers(kind: str, name: str) -> None:
    model, _ = stack(kind)
    layer, x = model[0][0], torch.randn(3, 4, 70)
    base = layer(x)
    stored = bits(layer.weight)
    adapt(model, METHODS[name](target_modules=("0.0",)))  # type: ignore[call-arg]  # a DeltaMethod
    torch.testing.assert_close(layer(x), base)
    randomise(model)
    state = layer_state(layer)
    assert state.view.plain, "the fast way"
    assert torch.equal(state.view.view(), layer.dense()) and state.view.view().shape == (24, 70)
    deltas = state.deltas("default")
    reference = state.view.forward_with(deltas, x)
    torch.testing.assert_close(layer(x), reference, **EXACT)
    bias = layer.bias.double() + deltas.get("bias", torch.zeros(24)).double()
    wide = functional.linear(x.double(), layer.dense().double() + deltas["weight"].double(), bias)
    torch.testing.assert_close(layer(x).double(), wide, **EXACT)
    assert not torch.allclose(reference, base)
    merge(model)
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer(x), reference, **EXACT)
    unmerge(model)
    assert bits(layer.weight) == stored
    with disabled(model):
        torch.testing.assert_close(layer(x), base)


@kinds
def test_gradients_are_those_of_the_dense_layer_in_float64(kind: str) -> None:
    model, _ = stack(kind)
    adapt(model, LoRA(("0.0", "1.0"), rank=2))
    randomise(model)
    x = torch.randn(5, 70, requires_grad=True)
    upstream = torch.randn(5, 70)
    model(x).backward(upstream)
    wide = x.detach().double().requires_grad_()
    tensors = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in adapter_tensors(model, "default").items()
    }
    y = wide
    for block in ("0.0", "1.0"):
        layer = model.get_submodule(block)
        update = y @ tensors[f"{block}.lora_A"].T @ tensors[f"{block}.lora_B"].T
        base = functional.linear(y, layer.dense().double(), layer.bias.double())
        y = base + 16 / 2 * update
    y.backward(upstream.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, **EXACT)
    for name, tensor in adapter_tensors(model, "default").items():
        torch.testing.assert_close(tensor.grad.double(), tensors[name].grad, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for n, p in model.named_parameters() if "lora" not in n)


@kinds
def test_double_and_autocast_keep_the_weights_values(kind: str) -> None:
    model, _ = stack(kind)
    x, dense = torch.randn(3, 70), model[0][0].dense()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model[0](x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), model[0](x), rtol=3e-2, atol=3e-2)
    model.double()
    assert torch.equal(model[0][0].dense(), dense), "no bit of it is rounded once more"
    expected = functional.linear(x.double(), dense.double(), model[0][0].bias)
    torch.testing.assert_close(model[0](x.double()), expected, rtol=1e-12, atol=1e-12)


@kinds
def test_what_is_saved_of_it_is_plain(kind: str) -> None:
    model = tiny_model("bert")
    quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
    plain = tiny_model("bert", seed=1)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(plain), logits(model), **EXACT)
    # Loading into it would turn values to integers.
    with pytest.raises(RuntimeError, match=r"is quantised\. Load the values first, then quantise"):
        model.load_state_dict(plain.state_dict())
    adapt(model, LoRA(("query",), rank=2), head=head_of(model))
    randomise(model)
    expected = logits(model)
    merge_and_unload(model)
    assert quantisation_of(model) is None
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(plain), expected, **EXACT)


@kinds
def test_an_adapter_loads_on_a_base_quantised_alike(kind: str, tmp_path: Path) -> None:
    def base() -> nn.Module:
        model = tiny_model("bert")
        quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
        return model

    model = base()
    adapt(model, LoRA("all-linear", rank=2), head=head_of(model))
    randomise(model)
    save_adapter(model, tmp_path)
    again, unquantised = base(), tiny_model("bert")
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(logits(again), logits(model))
    load_adapter(unquantised, read_adapter(tmp_path))
    assert not torch.allclose(logits(unquantised), logits(model), atol=1e-4)


def test_rows_of_zeros_and_odd_widths() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64)) for _ in range(2)))
    nn.init.zeros_(model[0][0].weight)
    for kind in QUANTISED:
        zeros = copy.deepcopy(model)
        quantise(zeros, kind)
        assert torch.equal(zeros[0][0].dense(), torch.zeros(64, 64))
    odd = nn.Sequential(nn.Sequential(nn.Linear(5, 4)), nn.Sequential(nn.Linear(4, 5)))
    assert quantisable(odd) == ("1.0",)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeltafitError, match=r"GPT2For.* has no linear layers in its blocks"):
        quantise(tiny_model("gpt2"), "int8")
    model = tiny_model("bert")
    quantise(model, "nf4")
    with pytest.raises(DeltafitError, match=r"'bert.encoder.layer.2.*weight' is quantised, and"):
        adapt(model, LastBlocks(1), head=head_of(model))
    with pytest.raises(DeltafitError, match="is quantised, and what is stored in few bits"):
        adapt(model, LoRA(trained_modules=("bert.encoder.layer.0",)))
    adapt(model, LoRA(), head=head_of(model))
    with pytest.raises(DeltafitError, match="Quantise first, then adapt it"):
        quantise(model, "nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("deltafit.adapters.quantising.find_spec", lambda name: None)
    with pytest.raises(DeltafitError, match=r"pip install 'deltafit\[quantised\]'"):
        quantise(tiny_model("bert"), "int8")
    of_others = nn.Linear(4, 4)
    of_others.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DeltafitError, match=r"torch.int8\) cannot be adapted. .*adapters.quantise"):
        view_of(of_others)


def test_a_step_needs_no_dense_copy_of_all_weights() -> None:
    """What the graph keeps of a quantised layer is not its dequantised weight."""
    model, _ = stack("nf4")
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(2, 70, requires_grad=True)).sum().backward()
    assert sum(kept) < math.prod(model[0][0].dense().shape)
