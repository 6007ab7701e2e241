"""Adapters of convolutions on disk: both ways with PEFT where it does the same, else refused."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    merge,
    model_adapters,
    read_adapter,
    save_adapter,
)
from deltafit.adapters.combination import Combination, combined_changes
from deltafit.adapters.extraction import extracted
from deltafit.adapters.low_rank import RankChoice, stored_of
from deltafit.adapters.truncation import truncated
from deltafit.errors import DeltafitError
from deltafit.methods import (
    IA3,
    AdaLoRA,
    DeltaMethod,
    DoRA,
    LoHa,
    LoKr,
    LoRA,
    Sparse,
    VeRA,
)
from tests.adapters.adapted import EXACT, randomise
from tests.adapters.convolutional import (
    GEOMETRIES,
    Pictures,
    its_input,
    one_convolution,
    pictures,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ALL = ("stem", "point", "line")  # but for the one in groups
WITH_PEFT: list[DeltaMethod] = [
    LoRA(ALL, rank=2),
    LoRA((*ALL, "head"), rank=4, rank_pattern=(("point", 2),), scaling="alpha/sqrt(r)"),
    LoRA(ALL, rank=2, initialisation="pissa"),
    DoRA(ALL, rank=2),
    AdaLoRA(ALL, rank=2, initial_rank=3),
    LoHa((*ALL, "depth"), rank=2),
    LoKr((*ALL, "depth", "head"), rank=1),
    LoKr(("stem", "point", "depth"), rank=8),
    IA3(("stem", "point", "depth"), feedforward_modules=("depth", "point")),
    IA3(("stem", "head"), feedforward_modules=()),
]


def in_peft(model: nn.Module, folder: Path, **options: Any) -> nn.Module:
    return peft.PeftModel.from_pretrained(model, folder, **options).eval()


@pytest.mark.parametrize("method", WITH_PEFT, ids=str)
def test_ours_loads_in_peft_and_comes_back(method: DeltaMethod, tmp_path: Path) -> None:
    model, x = Pictures().double(), pictures().double()
    base = model(x)
    adapt(model, method)
    randomise(model, std=0.5)
    adapted = model(x)
    save_adapter(model, tmp_path)
    theirs = in_peft(Pictures().double(), tmp_path, is_trainable=True)
    torch.testing.assert_close(theirs(x), adapted, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(adapted, base, atol=1e-2)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    own = peft.get_peft_model_state_dict(theirs)
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in stored.items()}
    theirs.save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        again = Pictures().double()
        load_adapter(again, found := read_adapter(folder))
        assert found.notes == ()
        torch.testing.assert_close(again(x), adapted, rtol=1e-9, atol=1e-9)
    # The same gradients from the same state, whatever the shapes.
    for one in (again, theirs):
        for parameter in one.parameters():
            parameter.requires_grad_(parameter.requires_grad or one is again)
        one(x).square().sum().backward()
    named = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters()}
    for name, tensor in adapter_tensors(again, "default").items():
        keys = (f"base_model.model.{name}{end}" for end in (".weight", ""))
        expected = next(named[key] for key in keys if key in named)
        assert tensor.grad is not None and expected is not None
        torch.testing.assert_close(tensor.grad.flatten(), expected.flatten(), rtol=1e-7, atol=1e-7)


THEIRS: list[peft.PeftConfig] = [
    peft.LoraConfig(target_modules=["stem", "point", "line"], r=3, lora_dropout=0.1),
    peft.LoraConfig(target_modules=["stem", "line"], r=3, use_dora=True, use_rslora=True),
    peft.LoHaConfig(target_modules=["stem", "depth", "line"], r=3, init_weights=False),
    peft.LoKrConfig(target_modules=["stem", "depth"], r=9, init_weights=False),
    peft.LoKrConfig(target_modules=["stem", "line"], r=1, init_weights="lycoris"),
    peft.IA3Config(target_modules=["stem", "depth"], feedforward_modules=["depth"]),
]


@pytest.mark.parametrize("config", THEIRS, ids=lambda config: str(config.peft_type.value))
def test_theirs_loads_here_and_merges_to_the_same(config: peft.PeftConfig, tmp_path: Path) -> None:
    theirs, x = peft.get_peft_model(Pictures(), config).eval(), pictures()
    generator = torch.Generator().manual_seed(5)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path)
    model = Pictures()
    load_adapter(model, stored := read_adapter(tmp_path))
    assert stored.notes == ()
    torch.testing.assert_close(model(x), theirs(x), **EXACT)
    assert not torch.allclose(model(x), Pictures()(x), atol=1e-2)
    merge(model)
    torch.testing.assert_close(model.stem.weight, _merged(theirs), **EXACT)
    torch.testing.assert_close(model(x), theirs.merge_and_unload()(x), **EXACT)


def _merged(theirs: nn.Module) -> Tensor:
    theirs.merge_adapter()
    weight: Tensor = theirs.base_model.model.stem.base_layer.weight.detach().clone()
    theirs.unmerge_adapter()
    return weight


class OneLayer(nn.Module):
    """Its input's layer, which PEFT can find by a name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize(
    ("config", "geometry", "said"),
    [
        (peft.LoraConfig(r=4), "in groups", "'layer' PEFT's LoRA lets each output .* all groups"),
        (peft.LoraConfig(r=4), "dilated", "PEFT's LoRA does not dilate its kernel"),
        (peft.LoraConfig(r=4, use_dora=True), "round", "zeros where .* pads with 'circular'"),
        (peft.LoHaConfig(r=4), "mirrored", "PEFT's LoHa pads with zeros where .* 'reflect'"),
        (peft.LoKrConfig(r=1), "mirrored", "PEFT's LoKr pads with zeros where .* 'reflect'"),
        (peft.LoKrConfig(r=9), "a line", "PEFT's LoKr of a Conv1d multiplies by a whole"),
    ],
)
def test_what_peft_computes_otherwise_is_refused(
    config: peft.PeftConfig, geometry: str, said: str, tmp_path: Path
) -> None:
    config.target_modules = {"layer"}
    theirs = peft.get_peft_model(OneLayer(GEOMETRIES[geometry]()), config)
    theirs.save_pretrained(tmp_path)
    model = OneLayer(GEOMETRIES[geometry]())
    with pytest.raises(DeltafitError, match=said):
        load_adapter(model, read_adapter(tmp_path))
    assert not model_adapters(model).adapters and type(model.layer).__name__.startswith("Conv")


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_kernels_of_their_own_are_a_variant(kind: str, tmp_path: Path) -> None:
    config = {"LoHa": peft.LoHaConfig, "LoKr": peft.LoKrConfig}[kind](
        target_modules=["stem"], r=1, use_effective_conv2d=True
    )
    peft.get_peft_model(Pictures(), config).save_pretrained(tmp_path)
    with pytest.raises(DeltafitError, match=f"_t[12]' belongs to a variant of {kind}"):
        read_adapter(tmp_path)


def test_a_convolution_over_three_dimensions_is_refused(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["layer"])
    peft.get_peft_model(OneLayer(nn.Conv3d(2, 3, 2)), config).save_pretrained(tmp_path)
    with pytest.raises(DeltafitError, match="convolutions over one dimension or two"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("method", "geometry"),
    [
        *((LoRA(("0",), rank=2), name) for name in ("in groups", "dilated", "round", "mirrored")),
        (DoRA(("0",), rank=2), "a line in groups"),
        (AdaLoRA(("0",), rank=1, initial_rank=2), "channel by channel"),
        (LoHa(("0",), rank=2), "round"),
        (LoKr(("0",), rank=9), "a line"),
        (LoKr(("0",), rank=9), "mirrored"),
        (IA3(("0",)), "a line"),
        (VeRA(("0",), rank=4), "a plane"),
        (Sparse(("0",)), "a plane"),
    ],
    ids=str,
)
def test_what_peft_lacks_is_saved_for_deltafit_alone(
    method: DeltaMethod, geometry: str, tmp_path: Path
) -> None:
    model = one_convolution(geometry).float()
    x = its_input(model).float()
    adapt(model, method)
    randomise(model)
    save_adapter(model, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    again = one_convolution(geometry).float()
    load_adapter(again, read_adapter(tmp_path))
    torch.testing.assert_close(again(x), model(x), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(again(x), one_convolution(geometry).float()(x), atol=1e-3)


def test_one_layer_that_peft_lacks_leaves_it_no_configuration(tmp_path: Path) -> None:
    model = Pictures()
    adapt(model, LoRA((*ALL, "depth"), rank=8))
    save_adapter(model, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_cut_combined_and_extracted(tmp_path: Path) -> None:
    x, targets = pictures(), (*ALL, "depth")
    logits = {}
    for number, name in enumerate(("a", "b")):
        model = Pictures()
        adapt(model, LoRA(targets, rank=3))
        randomise(model, seed=number)
        logits[name] = model(x)
        save_adapter(model, tmp_path / name)
    stored = {name: read_adapter(tmp_path / name) for name in logits}
    # A cut keeps the leading singular values, of kernels as rows.
    cut, losses = truncated(stored["a"], RankChoice(rank=2), "a")
    left, right = (stored["a"].tensors[f"stem.lora_{n}"].double() for n in "BA")
    values = torch.linalg.svdvals(left @ right) * 16 / 3
    lost = next(loss.lost for loss in losses if loss.name == "stem")
    assert lost == pytest.approx(float(values[2:].square().sum()), rel=1e-6)
    model = Pictures()
    load_adapter(model, cut)
    assert (
        torch.linalg.matrix_rank(model.stem.lora_B["default"] @ model.stem.lora_A["default"]) == 2
    )
    whole, _ = truncated(stored["a"], RankChoice(rank=3), "a")
    model = Pictures()
    load_adapter(model, whole)
    assert torch.equal(model(x), logits["a"])
    # The sum of two changes is the change of the sum.
    both = combined_changes(list(stored.values()), Combination(weights=(1.0, 1.0)), ("a", "b"))
    model = Pictures()
    load_adapter(model, stored_of(both.adapter, {}))
    expected = Pictures()
    for adapter in stored.values():
        one = Pictures()
        load_adapter(one, adapter)
        merge(one)
        for target in targets:
            change = one.get_submodule(target).weight - Pictures().get_submodule(target).weight
            expected.get_submodule(target).weight.data += change
    torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-6)
    # What such a model learned comes out again.
    for choice in (RankChoice(rank=6), None):
        found = extracted(Pictures(), expected, choice, head=(), keep_others=False)
        assert {loss.name for loss in found.losses} == set(targets)
        model = Pictures()
        load_adapter(model, found.stored({}))
        torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-6)


def test_kernels_trained_whole_come_back_beside_an_adapter(tmp_path: Path) -> None:
    model, x = Pictures(), pictures()
    adapt(model, LoRA(("stem",), rank=2, trained_modules=("line",)))
    randomise(model)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(in_peft(Pictures(), tmp_path)(x), model(x), **EXACT)
