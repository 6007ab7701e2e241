"""Insertions in the engine: packed, beside others in one pass, and above a frozen prefix."""

from contextlib import nullcontext

import pytest

from deltafit.adapters import adapt
from deltafit.engine import check_packing, find_prefix, packed
from deltafit.engine.checking import find_reading
from deltafit.methods import Bottleneck, LoRA, Method
from tests.adapters.adapted import head_of, randomise
from tests.engine.mixes import LENGTHS, assert_each_has_its_own, with_adapters
from tests.engine.ragged import PACKABLE, ragged
from tests.tiny_models import tiny_model

BATCH = ragged((9, 5, 1, 5, 7))
BESIDE: dict[str, Method] = {
    "one": Bottleneck(size=3),
    "two": LoRA(target_modules="all-linear", rank=4),
    "three": Bottleneck(size=5, variant="pfeiffer", activation="tanh", layers=(0, 2)),
}


@pytest.mark.parametrize("architecture", PACKABLE)
def test_bottlenecks_run_packed(architecture: str) -> None:
    model = tiny_model(architecture)
    adapt(model, Bottleneck(size=4), head=head_of(model))
    randomise(model)
    assert check_packing(model, BATCH) is None


def test_bottlenecks_in_a_last_block_for_first_tokens() -> None:
    model = tiny_model("bert")
    adapt(model, Bottleneck(size=4), head=head_of(model))
    randomise(model)
    assert find_reading(model, BATCH) is not None


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_each_row_goes_through_its_own(architecture: str, run_packed: bool) -> None:
    model = with_adapters(tiny_model(architecture).double(), BESIDE)
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, ragged(LENGTHS))


def test_what_lies_below_is_a_constant() -> None:
    model = tiny_model("bert")
    adapt(model, Bottleneck(size=4, layers=(-1,)), head=head_of(model))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    prefix = find_prefix(model, trained, BATCH)
    assert prefix is not None and len(prefix.blocks) == 2 and not prefix.whole
