"""VeRA against PEFT's and the paper's formula; its matrices, which all layers share."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    layer_state,
    load_adapter,
    merge,
    model_adapters,
    read_adapter,
    save_adapter,
)
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import VeRA
from tests.adapters.adapted import gradients_beside_peft, head_of, logits, randomise, through_peft
from tests.adapters.test_law import example, make
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXACT = {"rtol": 1e-5, "atol": 1e-5}
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"target_modules": "all-linear", "rank": 40, "projection_prng_key": 7}),
    ("gpt2", {"target_modules": ("c_attn", "mlp.c_proj"), "rank": 9}),
    ("llama", {"target_modules": "all-linear", "layers": (0, -1), "rank": 16}),
]


def projections(model: nn.Module) -> dict[str, torch.Tensor]:
    """A and B as PEFT or we hold them."""
    if isinstance(model, peft.PeftModel):
        return {name: getattr(model.base_model, name)["default"] for name in ("vera_A", "vera_B")}
    return model_adapters(model).adapters["default"].shared.tensors


def theirs_with_values(architecture: str, **settings: Any) -> nn.Module:
    """PEFT's adapter with random values."""
    config = peft.VeraConfig(task_type="SEQ_CLS", **settings)
    theirs = peft.get_peft_model(tiny_model(architecture), config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return theirs


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
def test_the_formula_of_the_paper(kind: str) -> None:
    model, x = make(kind, 7, 5), example(kind, 7, (2, 3), 0)
    base = model(x)
    adapt(model, VeRA(("layer",), rank=4))
    shared = {name: tensor.double() for name, tensor in projections(model).items()}
    assert {n: t.shape for n, t in shared.items()} == {"vera_A": (4, 7), "vera_B": (5, 4)}
    tensors = adapter_tensors(model, "default")
    assert tensors["layer.vera_lambda_d"].tolist() == [0.1] * 4
    assert tensors["layer.vera_lambda_b"].tolist() == [0.0] * 5
    randomise(model)
    b, d = tensors["layer.vera_lambda_b"], tensors["layer.vera_lambda_d"]
    inputs = x if x.is_floating_point() else functional.one_hot(x, 7).double()
    change = inputs @ (b.diag() @ shared["vera_B"] @ d.diag() @ shared["vera_A"]).T
    torch.testing.assert_close(model(x), base + change, rtol=1e-12, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x), base + change, rtol=1e-12, atol=1e-12)


def test_all_layers_compute_with_views_of_one_copy_wherever_the_model_goes() -> None:
    model = tiny_model("bert")
    adapt(model, VeRA("all-linear", rank=6))
    shared = projections(model)
    assert shared["vera_A"].shape == (6, 48) and shared["vera_B"].shape == (48, 6)  # the widest
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    assert not any("vera_A" in name or "vera_B" in name for name in names)
    randomise(model)
    adapted = logits(model)

    def storages(model: nn.Module) -> set[int]:
        layers = [
            layer_state(m)
            for n, m in model.named_modules()
            if n.endswith("dense") and "pooler" not in n
        ]
        return {s.all_tensors("default")["vera_A"].untyped_storage().data_ptr() for s in layers}

    assert storages(model) == {shared["vera_A"].untyped_storage().data_ptr()}
    other = copy.deepcopy(model)
    assert len(storages(other)) == 1 and storages(other) != storages(model)
    assert torch.equal(logits(other), adapted)
    other.double()
    assert len(storages(other)) == 1 and storages(other) != storages(model)
    torch.testing.assert_close(logits(other).float(), adapted, **EXACT)


def test_training_goes_on_behind_inference_in_another_precision() -> None:
    model = tiny_model("bert")
    adapt(model, VeRA(rank=6), head=head_of(model))
    randomise(model)
    model.double()
    with torch.inference_mode():
        model(**tiny_inputs(model))
    model(**tiny_inputs(model)).logits.sum().backward()
    assert all(t.grad is not None for t in adapter_tensors(model, "default").values())


def test_dropout_drops_the_adapters_input_alone() -> None:
    model, x = make("linear", 40, 3), example("linear", 40, (2, 3), 0)
    base = model(x)
    adapt(model, VeRA(("layer",), rank=4, dropout=0.5))
    assert torch.equal(model.train()(x), base)
    randomise(model)
    torch.manual_seed(0)
    dropped = functional.dropout(x, 0.5)
    alone = model.eval()(dropped) - functional.linear(dropped, model.layer.weight, model.layer.bias)
    torch.manual_seed(0)
    torch.testing.assert_close(model.train()(x), base + alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_ours_loads_in_peft_and_comes_back(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, theirs = through_peft(architecture, VeRA(**settings), tmp_path)
    assert not any("vera_A" in name for name in load_file(tmp_path / TENSORS))
    for name, tensor in projections(theirs).items():
        assert torch.equal(tensor, projections(model)[name]), name


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("bert", ["query", "dense"]), ("gpt2", ["c_attn", "c_fc"]), ("llama", "all-linear")],
)
def test_theirs_loads_here(
    architecture: str, targets: list[str] | str, saved: bool, tmp_path: Path
) -> None:
    theirs = theirs_with_values(
        architecture, target_modules=targets, save_projection=saved, r=12, projection_prng_key=3
    )
    theirs.save_pretrained(tmp_path)
    model = tiny_model(architecture)
    load_adapter(model, stored := read_adapter(tmp_path))
    assert stored.notes == () and set(stored.shared) == ({"vera_A", "vera_B"} if saved else set())
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)
    save_adapter(model, tmp_path / "ours")
    # What the key gives need not be stored.
    assert not any("vera_A" in name for name in load_file(tmp_path / "ours" / TENSORS))


def test_projections_of_another_origin_are_kept(tmp_path: Path) -> None:
    theirs = theirs_with_values("bert", r=12)
    for tensor in projections(theirs).values():
        tensor.mul_(1.5)
    theirs.save_pretrained(tmp_path)
    model = tiny_model("bert")
    load_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)
    save_adapter(model, tmp_path / "ours", task_type="SEQ_CLS")
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["save_projection"] is True
    again = tiny_model("bert")
    load_adapter(again, read_adapter(tmp_path / "ours"))
    assert torch.equal(logits(again), logits(model))
    there = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(there), logits(theirs), **EXACT)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_gradients_are_pefts(architecture: str, tmp_path: Path) -> None:
    gradients, named = gradients_beside_peft(architecture, VeRA(rank=12), tmp_path)
    ours = {n: gradient for n, gradient in gradients.items() if ".vera_" in n}
    assert len(ours) == sum(".vera_" in name for name in named)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, named[f"{name}.default"], rtol=1e-4, atol=1e-5)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    theirs_with_values("bert", r=12).save_pretrained(tmp_path)
    path, config = tmp_path / TENSORS, tmp_path / CONFIG
    tensors, settings = load_file(path), json.loads(config.read_text())
    key = "base_model.vera_A"
    save_file({**tensors, key: tensors[key][:, 1:].contiguous()}, path)
    model = tiny_model("bert")
    with pytest.raises(DeltafitError, match="the tensors that its layers share have the shapes"):
        load_adapter(model, read_adapter(tmp_path))
    assert not model_adapters(model).adapters
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
    with pytest.raises(DeltafitError, match="hold no vera_A and vera_B"):
        read_adapter(tmp_path)
    save_file(tensors, path)
    for changes, said in (
        ({"bias": "all"}, "bias is 'all'"),
        ({"r": 0}, "rank must be a whole number of at least 1; got 0"),
        ({"vera_dropout": "x"}, "dropout must be at least 0"),
    ):
        config.write_text(json.dumps(settings | changes))
        with pytest.raises(DeltafitError, match=said):
            read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1; got 0"),
        ({"d_initial": 0}, "neither would learn"),
        ({"d_initial": float("nan")}, "d_initial must be a finite number; got nan"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1; got 1"),
        ({"projection_prng_key": -1}, "projection_prng_key must be a whole number from 0"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        VeRA(**settings)
