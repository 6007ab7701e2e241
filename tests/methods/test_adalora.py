"""AdaLoRA's allocation against PEFT's, its budget, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator as TheirAllocator
from torch import nn

from deltafit.errors import UsageError
from deltafit.methods import AdaLoRA

SHAPES = ((7, 5), (4, 9), (6, 6))
START, END, TOTAL = 4, 20, 30


def parameters(rank: int, seed: int) -> list[dict[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

    return [
        {"lora_A": random(rank, i), "lora_B": random(o, rank), "lora_E": random(rank, 1)}
        for o, i in SHAPES
    ]


class Theirs(nn.Module):
    """Copies under the names by which PEFT's allocator finds them."""

    def __init__(self, layers: list[dict[str, nn.Parameter]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in layers:
            module = nn.Module()
            for name, tensor in layer.items():
                setattr(module, name, nn.ParameterDict({"default": tensor.detach().clone()}))
            self.layers.append(module)

    def at(self, number: int, name: str) -> nn.Parameter:
        return getattr(self.layers[number], name)["default"]


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_triplets_go_as_with_peft(interval: int, seed: int) -> None:
    rank, kept = 6, 2
    layers = parameters(rank, seed)
    theirs = Theirs(layers)
    method = AdaLoRA(
        initial_rank=rank, rank=kept, warmup=START / TOTAL, final=1 - END / TOTAL, interval=interval
    )
    ours = method.step_hook(layers, TOTAL)
    config = SimpleNamespace(
        beta1=0.85, beta2=0.85, target_r=kept, init_r=rank, tinit=START, tfinal=TOTAL - END,
        deltaT=interval, total_step=TOTAL, kappa=None,
    )  # fmt: skip
    allocator: Any = TheirAllocator(theirs, config, "default")
    generator, most = torch.Generator().manual_seed(seed + 10), 0
    for step in range(1, END):
        for number, layer in enumerate(layers):
            for name, tensor in layer.items():
                tensor.grad = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                theirs.at(number, name).grad = tensor.grad.clone()
                for each in (tensor, theirs.at(number, name)):  # a step of any optimiser
                    each.data -= 0.1 * tensor.grad
        ours.after_step(step)
        allocator.update_and_allocate(theirs, step)
        for number, layer in enumerate(layers):
            assert torch.equal(layer["lora_E"] == 0, theirs.at(number, "lora_E") == 0), step
        most = max(most, sum(int((layer["lora_E"] == 0).sum()) for layer in layers))
    assert most > len(SHAPES)  # it was no comparison of nothing


def test_the_budget_falls_along_a_cubic_and_then_stands() -> None:
    layers = parameters(6, 0)
    method = AdaLoRA(initial_rank=6, rank=2, warmup=START / TOTAL, final=1 - END / TOTAL)
    hook: Any = method.step_hook(layers, TOTAL)
    budgets = [hook.budget(step) for step in range(1, TOTAL + 1)]
    assert budgets[:START] == [18] * START and budgets[END - 1 :] == [6] * (TOTAL - END + 1)
    assert budgets == sorted(budgets, reverse=True)
    halfway = (START + END) // 2
    assert hook.budget(halfway) == int(12 * 0.5**3 + 6)
    for step in range(1, TOTAL + 1):
        for layer in layers:
            for tensor in layer.values():
                tensor.grad = torch.ones_like(tensor)
                tensor.data += 0.5  # what was zeroed comes back, were the choice not held
        hook.after_step(step)
        left = [int((layer["lora_E"] != 0).sum()) for layer in layers]
        assert step < END or sum(left) == 6
        assert step != END or (chosen := left)
    assert left == chosen


def test_the_penalty_is_zero_for_orthonormal_vectors_and_has_a_finite_gradient() -> None:
    layers = parameters(4, 0)
    for layer in layers:
        for name in ("lora_A", "lora_B"):
            values = layer[name].data
            tall = values if values.shape[0] >= values.shape[1] else values.T
            q = torch.linalg.qr(tall)[0]
            layer[name].data = q if values.shape == q.shape else q.T
    hook = AdaLoRA(initial_rank=4, rank=2, orthogonality=0.3).step_hook(layers, 10)
    assert float(hook.penalty()) == pytest.approx(0, abs=1e-12)
    layers[0]["lora_A"].data *= 2  # A·Aᵀ = 4·I, and ‖3·I‖ = 3·√4, one of six matrices
    penalty = hook.penalty()
    assert float(penalty) == pytest.approx(0.3 * 6 / 6)
    penalty.backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in layers[0].values())


def test_what_goes_on_is_in_the_state() -> None:
    torch.manual_seed(0)
    runs = [parameters(5, 3) for _ in range(2)]
    method = AdaLoRA(initial_rank=5, rank=2, warmup=0.1, final=0.2)
    hooks = [method.step_hook(layers, 20) for layers in runs]
    for step in range(1, 21):
        if step == 9:  # as after an interruption
            again = method.step_hook(runs[1], 20)
            for name, tensor in hooks[1].state.items():
                again.state[name].copy_(tensor)
            hooks[1] = again
        for one, other in zip(*runs, strict=True):
            for name, tensor in one.items():
                tensor.grad = torch.randn_like(tensor)
                other[name].grad = tensor.grad.clone()
        for hook in hooks:
            hook.after_step(step)
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one["lora_E"], other["lora_E"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 13}, "rank, the average in the end, must be at most initial_rank; got 13 and 12"),
        ({"rank": 0.2}, "rank must be a whole number of at least 1; got 0.2"),
        ({"interval": 0}, "interval must be a whole number of at least 1; got 0"),
        ({"warmup": 0.7, "final": 0.5}, "are more than all of it"),
        ({"sensitivity": 1}, "sensitivity must be at least 0 and below 1; got 1"),
        ({"orthogonality": -1}, "orthogonality must be at least 0"),
        ({"alpha": 0}, "alpha must be a finite number above 0"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AdaLoRA(**settings)


@pytest.mark.parametrize(
    ("warmup", "final", "total"), [(0.5, 0.5, 10), (0.0, 0.95, 9), (0.9, 0.0, 3), (0.0, 0.0, 1)]
)
def test_the_budget_is_reached_however_short_its_way(
    warmup: float, final: float, total: int
) -> None:
    layers = parameters(6, 0)
    hook = AdaLoRA(initial_rank=6, rank=2, warmup=warmup, final=final).step_hook(layers, total)
    for step in range(1, total + 1):
        for layer in layers:
            for tensor in layer.values():
                tensor.grad = torch.ones_like(tensor)
        hook.after_step(step)
        left = sum(int((layer["lora_E"] != 0).sum()) for layer in layers)
        assert hook.settled(step) == (left == 6)
    assert hook.settled(total)
