"""LoRA started from what quantising the base took: nearer to the float layer, on that base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from deltafit.adapters import (
    QUANTISED,
    adapt,
    adapter_tensors,
    disabled,
    layer_state,
    load_adapter,
    merge_and_unload,
    model_adapters,
    quantise,
    read_adapter,
    save_adapter,
    trained_tensors,
)
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LoRA
from tests.adapters.adapted import EXACT, head_of, logits
from tests.adapters.test_law import make
from tests.tiny_models import tiny_model

kinds = pytest.mark.parametrize("kind", QUANTISED)
LOFTQ = LoRA(("0.0",), rank=6, alpha=5, initialisation="loftq")


def stack(kind: Any, inputs: int = 70, outputs: int = 24) -> tuple[nn.Sequential, Tensor, Any]:
    """Two blocks of a quantised layer, the first one's weight, and what rounding took there."""
    torch.manual_seed(2)
    shapes = ((inputs, outputs), (outputs, inputs))
    model = nn.Sequential(*(nn.Sequential(nn.Linear(*shape)) for shape in shapes))
    weight = model[0][0].weight.detach().clone()
    errors = quantise(model, kind, errors_of=("0.0", "elsewhere"))
    return model, weight, errors


def quantised_bert(kind: Any, targets: tuple[str, ...]) -> tuple[nn.Module, Any]:
    model = tiny_model("bert")
    names = [name for name, _ in model.named_modules() if name.endswith(targets)]
    return model, quantise(model, kind, errors_of=names)


@kinds
def test_the_errors_are_the_weight_less_the_rounded_one(kind: str) -> None:
    model, weight, errors = stack(kind)
    assert list(errors) == ["0.0"]
    assert torch.equal(errors["0.0"]["error"], weight - model[0][0].dense())
    assert errors["0.0"]["error"].any()


@kinds
@pytest.mark.parametrize("scaling", ["alpha/r", "alpha", "alpha/sqrt(r)"])
@pytest.mark.parametrize("method", [LoRA, DoRA])
def test_it_starts_as_the_nearest_matrix_to_what_rounding_took(
    kind: str, scaling: Any, method: type[LoRA]
) -> None:
    model, weight, errors = stack(kind)
    rounded = model[0][0].dense().double()
    adapt(
        model, method(("0.0",), rank=6, alpha=5, scaling=scaling, initialisation="loftq"),
        statistics=errors,
    )  # fmt: skip
    error = weight.double() - rounded
    # Independently: projected on the leading eigenvectors of the errors' Gram matrix.
    _, vectors = torch.linalg.eigh(error.T @ error)
    expected = error @ vectors[:, -6:] @ vectors[:, -6:].T
    state = layer_state(model[0][0])
    delta = state.deltas("default")["weight"].detach().double()
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)
    # The layer's output comes nearer to the float layer's.
    x = torch.randn(200, 70, dtype=torch.float64)
    wanted = functional.linear(x, weight.double())
    plain = torch.linalg.norm(functional.linear(x, rounded) - wanted)
    corrected = torch.linalg.norm(functional.linear(x, rounded + delta) - wanted)
    assert corrected < 0.85 * plain
    own = (model[0][0](x.float()) - model[0][0].bias).detach().double()
    torch.testing.assert_close(torch.linalg.norm(own - wanted), corrected, rtol=1e-3, atol=0)


@kinds
@pytest.mark.parametrize("method", [LoRA, DoRA])
def test_the_law_holds_from_the_start(kind: str, method: type[LoRA]) -> None:
    model, _, errors = stack(kind)
    x = torch.randn(3, 4, 70)
    base = model[0][0](x)
    adapt(model, method(("0.0",), rank=3, initialisation="loftq"), statistics=errors)
    state = layer_state(model[0][0])
    reference = state.view.forward_with(state.deltas("default"), x)
    torch.testing.assert_close(model[0][0](x), reference, **EXACT)
    assert not torch.allclose(reference, base, atol=1e-4)
    with disabled(model):
        torch.testing.assert_close(model[0][0](x), base)
    adapted = model(x)
    merge_and_unload(model)
    torch.testing.assert_close(model(x), adapted, **EXACT)


@kinds
@pytest.mark.parametrize("method", [LoRA, DoRA])
def test_saved_it_gives_the_same_logits_on_the_same_base_and_is_refused_on_others(
    kind: str, method: type[LoRA], tmp_path: Path
) -> None:
    model, errors = quantised_bert(kind, ("query", "value"))
    own = method(rank=3, rank_pattern=(("value", 2),), initialisation="loftq")
    adapt(model, own, head=head_of(model), statistics=errors)
    for number, tensor in enumerate(trained_tensors(model, "default").values()):
        generator = torch.Generator().manual_seed(number)
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    adapted = logits(model)
    save_adapter(model, tmp_path / "one", task_type="SEQ_CLS")
    again, _ = quantised_bert(kind, ())
    load_adapter(again, stored := read_adapter(tmp_path / "one"))
    assert isinstance(stored.method, method) and stored.method.initialisation == "kaiming"
    assert torch.equal(logits(again), adapted)
    # It stays said in what is saved of it again.
    save_adapter(again, tmp_path / "two", task_type="SEQ_CLS")
    other = "int8" if kind == "nf4" else "nf4"
    for folder in ("one", "two"):
        found = read_adapter(tmp_path / folder)
        assert found.corrects == kind
        # PEFT would add it to whatever base it loads.
        assert not (tmp_path / folder / "adapter_config.json").exists()
        with pytest.raises(DeltafitError, match=rf"in {kind} takes .* this base's are not quanti"):
            load_adapter(plain := tiny_model("bert"), found)
        assert not model_adapters(plain).adapters
        with pytest.raises(DeltafitError, match=rf"in {kind} takes .* are stored in {other}"):
            load_adapter(quantised_bert(other, ())[0], found)


def test_what_it_makes_up_for_is_read_strictly(tmp_path: Path) -> None:
    model, errors = quantised_bert("nf4", ("query", "value"))
    adapt(model, LoRA(rank=2, initialisation="loftq"), head=head_of(model), statistics=errors)
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["deltafit"])
    assert metadata["corrects"] == "nf4"
    metadata["corrects"] = "int3"
    save_file(load_file(path), path, {"deltafit": json.dumps(metadata)})
    with pytest.raises(DeltafitError, match="its metadata is damaged"):
        read_adapter(tmp_path)


def test_layers_that_are_not_quantised_start_as_plain_lora() -> None:
    model, errors = quantised_bert("nf4", ("query",))
    targets = ("query", "word_embeddings")
    adapt(model, LoRA(targets, rank=2, initialisation="loftq"), statistics=errors)
    plain = tiny_model("bert")
    adapt(plain, LoRA(targets, rank=2))
    own, expected = (adapter_tensors(each, "default") for each in (model, plain))
    for name, tensor in own.items():
        assert torch.equal(tensor, expected[name]) == ("word_embeddings" in name), name


def test_two_adapters_on_one_base_know_their_own() -> None:
    model, _, errors = stack("nf4")
    adapt(model, LOFTQ, statistics=errors)
    adapt(model, LoRA(("0.0",), rank=2), name="plain")
    adapters = model_adapters(model).adapters
    assert adapters["default"].corrects == "nf4" and adapters["plain"].corrects is None


def test_refusals() -> None:
    model, _, errors = stack("nf4")
    with pytest.raises(DeltafitError, match=r"of '0\.0' that is not known: give adapt"):
        adapt(model, LOFTQ)
    with pytest.raises(DeltafitError, match=r"a rank of at most 24 there.* it is 25"):
        adapt(model, LoRA(("0.0",), rank=25, initialisation="loftq"), statistics=errors)
    assert not model_adapters(model).adapters
    with pytest.raises(DeltafitError, match=r"none of its targets is stored so: there is nothing"):
        adapt(make("linear", 9, 6), LoRA(("layer",), initialisation="loftq"))
    # Embeddings alone, though the rest is quantised.
    bert, errors = quantised_bert("int8", ("query",))
    with pytest.raises(DeltafitError, match="none of its targets is stored so"):
        adapt(bert, LoRA(("word_embeddings",), initialisation="loftq"), statistics=errors)
