"""What the engine does to linear layers, it does to quantised ones, or leaves them out."""

import pytest
import torch

from deltafit.adapters import QUANTISED, adapt, dequantise, quantise
from deltafit.adapters.quantised import QuantisedLinear
from deltafit.engine import frozen_products, packed, reduced_products
from deltafit.engine.digest import model_digest
from deltafit.engine.prefix import find_prefix
from deltafit.methods import LoRA
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import head_of, randomise
from tests.engine.mixes import LENGTHS as MIXED
from tests.engine.mixes import SEGMENTS, assert_each_has_its_own, with_adapters
from tests.engine.ragged import assert_same, in_training, outputs_and_gradients, ragged
from tests.tiny_models import tiny_inputs, tiny_model

LENGTHS = (9, 5, 1, 5, 7)

pytestmark = [
    pytest.mark.parametrize("kind", QUANTISED),
    pytest.mark.parametrize("architecture", ["bert", "llama"]),
]


def adapted(architecture: str, kind: str, **settings: object) -> torch.nn.Module:
    """In float64: random adapters would let rounding in float32 grow."""
    model = tiny_model(architecture).double()
    quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
    method = LoRA(rank=2, **settings)  # type: ignore[arg-type]  # settings of LoRA
    adapt(model, method, head=head_of(model))
    randomise(model)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_is_padded(architecture: str, kind: str, checkpointing: bool) -> None:
    model, batch = in_training(adapted(architecture, kind), 0.0), ragged(LENGTHS)
    expected = outputs_and_gradients(model, batch)
    assert any("lora_A" in name for name in expected[1])
    if checkpointing:
        enable_gradient_checkpointing(model)
    with packed(model):
        assert_same(outputs_and_gradients(model, batch), expected)


def test_a_mixed_batch_is_each_adapters_own(architecture: str, kind: str) -> None:
    model = tiny_model(architecture).double()
    quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
    with_adapters(model)
    assert_each_has_its_own(model, ragged(MIXED), SEGMENTS)


def test_a_frozen_prefix_is_fed(architecture: str, kind: str) -> None:
    model, batch = adapted(architecture, kind, layers=(-1,)), tiny_inputs(tiny_model(architecture))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    prefix = find_prefix(model, trained, batch)
    assert prefix is not None and len(prefix.blocks) == 2
    assert any(isinstance(m, QuantisedLinear) for b in prefix.blocks for m in b.modules())
    expected = outputs_and_gradients(model, batch)
    with prefix.fed(prefix.states(batch)):
        assert_same(outputs_and_gradients(model, batch), expected)


def test_products_in_bf16_leave_quantised_layers_out(architecture: str, kind: str) -> None:
    model = in_training(adapted(architecture, kind).float(), 0.0)
    batch = tiny_inputs(tiny_model(architecture))
    assert frozen_products(model) == []
    expected = outputs_and_gradients(model, batch)
    with reduced_products(model):
        found = outputs_and_gradients(model, batch)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])
    plain = tiny_model(architecture)
    quantise(plain, kind)  # type: ignore[arg-type]  # of QUANTISED
    dequantise(plain)
    plain.requires_grad_(False)
    assert len(frozen_products(plain)) > 10, "dense, they would be reduced"


def test_the_scales_of_a_weight_are_in_its_digest(architecture: str, kind: str) -> None:
    def digest(factor: float) -> bytes:
        model = tiny_model(architecture)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("query.weight", "q_proj.weight")):
                    parameter.mul_(factor)  # the same bits of each value, other scales
        quantise(model, kind)  # type: ignore[arg-type]  # of QUANTISED
        return model_digest(model, ())

    assert digest(1.0) == digest(1.0) != digest(2.0)
