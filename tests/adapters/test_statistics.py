"""What data says of layers: collected as numpy would, missing where it must not be, put to use."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    check_fits,
    layer_state,
    model_adapters,
    read_adapter,
    save_adapter,
)
from deltafit.adapters.statistics import input_moments
from deltafit.errors import DeltafitError
from deltafit.methods import DoRA, LoRA, Sparse
from tests.adapters.adapted import anatomy, head_of, logits, randomise
from tests.adapters.test_law import make
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EVA = LoRA(("query", "value"), rank=3, initialisation="eva")


def queries_and_values(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_modules() if n.endswith((".query", ".value"))]


def uneven_model() -> nn.Module:
    """A model behind whose first block two features say almost all: few directions explain it."""
    model = tiny_model("bert")
    model.get_submodule("bert.encoder.layer.0.output.LayerNorm").weight.data[:2] = 20
    return model


def words(model: nn.Module) -> Tensor:
    """Tokens of a batch, all of which count."""
    return tiny_inputs(model, batch=8, length=12)["input_ids"]


def statistics_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    with torch.no_grad(), input_moments(model, queries_and_values(model)) as statistics:
        model(words(model))
    return statistics


def test_moments_are_those_of_all_inputs_whatever_their_shape_or_name() -> None:
    model = make("linear", 5, 3)
    plain = anatomy(model)
    seen = [torch.randn(2, 4, 5).double(), torch.randn(1, 5).double(), torch.randn(3, 5).double()]
    with torch.no_grad(), input_moments(model, ["layer"]) as statistics:
        model(seen[0])
        model(seen[1])
        model(input=seen[2])
        assert not statistics
    rows = np.concatenate([x.reshape(-1, 5).numpy() for x in seen])
    found = statistics["layer"]
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["second_moment"], rows.T @ rows / 12, rtol=1e-12)
    assert anatomy(model) == plain


def test_a_module_that_never_ran_is_named() -> None:
    model = tiny_model("bert")
    statistics = statistics_of(model)
    name = next(iter(statistics))
    del statistics[name]
    for given in (statistics, None):
        with pytest.raises(DeltafitError, match=r"of '.*query' nothing is known"):
            adapt(model, EVA, statistics=given)
        with pytest.raises(DeltafitError, match=r"mask=gradient starts from .* \(gradient\)"):
            adapt(model, Sparse(("query",), mask="gradient"), statistics={})
    assert not model_adapters(model).adapters


def test_embeddings_have_no_directions() -> None:
    model = make("embedding", 5, 3)
    method = LoRA(("layer",), rank=2, initialisation="eva")
    with pytest.raises(DeltafitError, match="layer is an embedding: its inputs are tokens"):
        check_fits(model, method)
    with pytest.raises(DeltafitError, match="layer is an embedding: its inputs are tokens"):
        adapt(model, method, statistics={"layer": {"mean": torch.ones(5)}})


@pytest.mark.parametrize("method", [EVA, DoRA(("query", "value"), rank=3, initialisation="eva")])
def test_eva_starts_where_the_base_is_and_is_saved_as_lora(method: LoRA, tmp_path: Path) -> None:
    # In float64: DoRA's norms round, and 6e-7 of the logits is float32's share of that.
    exact = uneven_model().double()
    base = logits(exact)
    adapt(exact, method, head=head_of(exact), statistics=statistics_of(exact))
    torch.testing.assert_close(logits(exact), base, rtol=1e-12, atol=1e-12)
    model = uneven_model()
    adapt(model, method, head=head_of(model), statistics=statistics_of(model))
    ranks = [len(t) for n, t in adapter_tensors(model, "default").items() if n.endswith("lora_A")]
    assert sum(ranks) == 3 * len(ranks) and max(ranks) <= 6 and len(set(ranks)) > 1
    randomise(model)
    changed = logits(model)
    save_adapter(model, tmp_path, task_type="SEQ_CLS")
    stored = read_adapter(tmp_path).method
    assert type(stored) is type(method) and stored.initialisation == "kaiming"
    theirs = peft.PeftModel.from_pretrained(uneven_model(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), changed, rtol=1e-4, atol=1e-4)


def test_ranks_alphas_and_directions_are_those_of_pefts_eva() -> None:
    model, copy = tiny_model("bert"), tiny_model("bert")
    batch = {"input_ids": words(copy), "attention_mask": torch.ones_like(words(copy))}
    config = peft.LoraConfig(
        r=3, lora_alpha=16, target_modules=["query"], init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0, tau=0.99),
    )  # fmt: skip
    theirs = peft.get_peft_model(copy, config, low_cpu_mem_usage=True)
    peft.initialize_lora_eva_weights(theirs, [batch], show_progress_bar=False)
    # Queries alone: with the same inputs as their values, which of two gets a rank is a tie.
    adapt(model, LoRA(("query",), rank=3, initialisation="eva"), statistics=statistics_of(model))
    for name in model_adapters(model).adapters["default"].targets:
        own, other = model.get_submodule(name), theirs.base_model.model.get_submodule(name)
        method = layer_state(own).methods["default"]
        assert isinstance(method, LoRA)
        assert method.rank == other.r["default"]
        assert method.factor == pytest.approx(other.scaling["default"])
        ours, wanted = own.lora_A["default"], other.lora_A["default"].weight
        # Up to the sign; their decomposition is a randomised one.
        assert bool(((ours * wanted).sum(1).abs() > 0.98).all())


def test_the_mask_takes_the_entries_with_the_largest_gradient() -> None:
    model = make("linear", 6, 5)
    gradient = torch.randn(5, 6, dtype=torch.float64)
    adapt(
        model, Sparse(("layer",), density=0.3, mask="gradient"),
        statistics={"layer": {"gradient": gradient}},
    )  # fmt: skip
    _, indices = adapter_tensors(model, "default").values()
    expected = np.argsort(-np.abs(gradient.numpy().ravel()))[:9]
    assert set(indices.tolist()) == set(expected.tolist())
    for useless in (torch.zeros(5, 6), torch.full((5, 6), torch.nan)):
        with pytest.raises(DeltafitError, match="so no mask can be chosen by it"):
            adapt(
                model, Sparse(("layer",), mask="gradient"), name="other",
                statistics={"layer": {"gradient": useless}},
            )  # fmt: skip
