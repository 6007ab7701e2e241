"""Starting values: their distribution, and that they follow seed and tensor name alone."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltafit.adapters import adapt, adapter_tensors, generator_for
from deltafit.methods import LoRA

KINDS = {
    "linear": lambda: nn.Linear(64, 48),
    "conv1d": lambda: Conv1D(48, 64),
    "embedding": lambda: nn.Embedding(64, 48),
    "convolution": lambda: nn.Conv2d(32, 48, (2, 4), groups=4),  # eight channels of a group
}


def start(kind: str, name: str = "layer", seed: int = 0, **settings: object) -> dict[str, Tensor]:
    model = nn.ModuleDict({name: KINDS[kind]()})
    adapt(model, LoRA((name,), rank=16, **settings), seed=seed)
    return {n.rpartition(".")[2]: t for n, t in adapter_tensors(model, "default").items()}


@pytest.mark.parametrize("kind", KINDS)
def test_kaiming_and_gaussian(kind: str) -> None:
    random, zero = ("lora_B", "lora_A") if "embedding" in kind else ("lora_A", "lora_B")
    fan_in = 16 if "embedding" in kind else 64
    kaiming, gaussian = start(kind), start(kind, initialisation="gaussian")
    assert kaiming["lora_A"].shape == (16, 64) and kaiming["lora_B"].shape == (48, 16)
    assert not kaiming[zero].any() and not gaussian[zero].any()
    bound = 1 / math.sqrt(fan_in)
    assert 0.95 * bound < kaiming[random].abs().max() <= bound
    # the standard deviation of a uniform distribution, and 1/√r; 768 draws or more
    assert kaiming[random].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)
    assert gaussian[random].std().item() == pytest.approx(1 / math.sqrt(16), rel=0.08)
    assert abs(gaussian[random].mean().item()) < 0.03
    # torch's own layer of that shape has the same bound
    assert 0.95 * bound < nn.Linear(fan_in, 1000).weight.abs().max() <= bound


def test_starting_values_follow_seed_and_name_alone() -> None:
    first = start("linear")["lora_A"]
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    assert torch.equal(start("linear")["lora_A"], first)
    assert not torch.equal(start("linear", seed=1)["lora_A"], first)
    torch.set_rng_state(state)
    nn.Linear(64, 48)  # draws; the adapter draws nothing beyond it
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    start("linear")
    assert torch.equal(torch.get_rng_state(), after)


def test_starting_values_do_not_depend_on_order_or_on_the_other_targets() -> None:
    def built(names: list[str], targets: tuple[str, ...], **settings: object) -> dict[str, Tensor]:
        model = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
        adapt(model, LoRA(targets, rank=4), **settings)
        return dict(adapter_tensors(model, settings.get("name", "default")))

    one = built(["a", "b"], ("a", "b"))
    other = built(["b", "c", "a"], ("b", "a", "c"), name="other")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["a.lora_A"], one["b.lora_A"])
    assert torch.equal(built(["b"], ("b",))["b.lora_A"], one["b.lora_A"])


def test_a_generator_is_the_same_everywhere_and_for_ever() -> None:
    # Fixed values: another number here would change every published run.
    values = torch.rand(2, generator=generator_for(7, "a.lora_A"), dtype=torch.float64)
    again = torch.rand(2, generator=generator_for(7, "a.lora_A"), dtype=torch.float64)
    assert torch.equal(values, again)
    assert generator_for(7, "a.lora_A").initial_seed() == 7953505752151751556
