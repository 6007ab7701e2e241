"""Sparse adapters on models: PEFT's SHiRA as the oracle, integers that stay so, a file's size."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    load_adapter,
    read_adapter,
    save_adapter,
    trained_tensors,
)
from deltafit.files import read_tensors
from deltafit.methods import Sparse
from tests.adapters.adapted import head_of, logits, randomise
from tests.adapters.test_law import KINDS, example, make
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RANK, DENSITY = 2, 2 * (32 + 32) / (32 * 32)  # SHiRA takes as many entries as LoRA of this rank


def with_shira() -> nn.Module:
    config = peft.ShiraConfig(
        r=RANK, random_seed=4, target_modules=["query", "value"], init_weights=False
    )
    torch.manual_seed(7)
    return peft.get_peft_model(tiny_model("bert"), config).eval()


def test_logits_and_gradients_are_those_of_pefts_shira() -> None:
    theirs, ours = with_shira(), tiny_model("bert")
    adapt(ours, Sparse(("query", "value"), density=DENSITY))
    for name, module in theirs.base_model.model.named_modules():
        if hasattr(module, "shira_weight"):
            row, column = module.shira_indices["default"].long()
            # Ours read the weight row by row; so do theirs, which come from torch.where.
            own = ours.get_submodule(name)
            own.sparse_indices["default"].data = (row * 32 + column).int()
            own.sparse_values["default"].data = module.shira_weight["default"].data.clone()
    inputs = tiny_inputs(ours)
    expected, got = theirs(**inputs).logits, ours(**inputs).logits
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, logits(tiny_model("bert")))
    expected.square().sum().backward()
    got.square().sum().backward()
    for name, values in trained_tensors(ours, "default").items():
        module = theirs.base_model.model.get_submodule(name.rpartition(".")[0])
        torch.testing.assert_close(values.grad, module.shira_weight["default"].grad)


def test_only_the_values_are_trained_and_indices_stay_integers(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, Sparse(), head=head_of(model))
    trained = trained_tensors(model, "default")
    assert not any(name.endswith("sparse_indices") for name in trained)
    randomise(model)
    before = {n: t.clone() for n, t in adapter_tensors(model, "default").items()}
    changed = logits(model)
    save_adapter(model, tmp_path)
    other = tiny_model("bert").double()
    load_adapter(other, read_adapter(tmp_path), trainable=True)
    torch.testing.assert_close(logits(other).float(), changed)
    for name, tensor in adapter_tensors(other.float(), "default").items():
        assert tensor.requires_grad == (name in trained)
        if name.endswith("sparse_indices"):
            assert tensor.dtype == torch.int32 and torch.equal(tensor, before[name])
    assert adapter_tensors(model.bfloat16(), "default").keys() == before.keys()
    indices = [t for n, t in adapter_tensors(model, "default").items() if n.endswith("indices")]
    assert indices and all(t.dtype == torch.int32 for t in indices)


def test_what_is_saved_is_in_proportion_to_the_density(tmp_path: Path) -> None:
    for density in (0.1, 0.5):
        model = tiny_model("bert")
        adapt(model, Sparse(("query",), density=density))
        save_adapter(model, tmp_path)
        stored = read_tensors(tmp_path / "adapter_model.safetensors")
        size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        assert size == 3 * round(density * 32 * 32) * (4 + 4)  # blocks, entries, bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [1, 3])
def test_the_weight_is_changed_where_the_mask_is_and_nowhere_else(kind: str, alpha: float) -> None:
    model, x = make(kind, 6, 4), example(kind, 6, (2, 4), 0)
    adapt(model, Sparse(("layer",), density=0.5, alpha=alpha))
    randomise(model)
    values, indices = adapter_tensors(model, "default").values()
    # By hand, entry by entry of the view: [outputs, inputs], or [vocabulary, width].
    weight = model.layer.weight.detach().clone()
    view = weight.T if kind == "conv1d" else weight.flatten(1)
    columns = view.shape[1]
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        view[index // columns, index % columns] += alpha * value
    got = model(x)
    model.layer.weight.data = weight
    values.data.zero_()
    torch.testing.assert_close(got, model(x), rtol=1e-12, atol=1e-12)
