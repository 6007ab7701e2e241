"""The learning rate's course against transformers, and AdamW's groups."""

import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from deltafit.training.optimisation import make_optimiser, rate_factor, set_rates
from deltafit.training.settings import Schedule, TrainingSettings


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_without_warm_up_the_rates_are_transformers(schedule: Schedule) -> None:
    total = 17
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimiser, num_warmup_steps=0, num_training_steps=total)
    for step in range(total):
        assert rate_factor(step, total, schedule, 0.0) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    if schedule != "constant":  # falls to zero just behind the last step
        assert theirs.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_after_the_warm_up_the_rates_are_transformers(schedule: Schedule) -> None:
    total, warmup = 40, 0.1
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimiser, num_warmup_steps=4, num_training_steps=total)
    for step in range(total):
        if step >= 4:
            expected = theirs.get_last_lr()[0]
            assert rate_factor(step, total, schedule, warmup) == pytest.approx(expected)
        optimiser.step()
        theirs.step()


def test_the_warm_up_rises_evenly_and_never_stands_still() -> None:
    factors = [rate_factor(step, 20, "constant", 0.25) for step in range(20)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert factors[5:] == [1.0] * 15


@pytest.mark.parametrize("total", [1, 2, 3])
def test_even_the_shortest_run_learns_in_every_step(total: int) -> None:
    for schedule in ("linear", "cosine", "constant"):
        for warmup in (0.0, 0.06, 0.9):
            factors = [rate_factor(step, total, schedule, warmup) for step in range(total)]  # type: ignore[arg-type]  # literals
            assert all(0 < factor <= 1 for factor in factors)


def test_groups_keep_head_and_vectors_apart() -> None:
    parameters = {
        "body.weight": nn.Parameter(torch.ones(2, 2)),
        "body.bias": nn.Parameter(torch.ones(2)),
        "head.weight": nn.Parameter(torch.ones(3, 2)),
        "head.bias": nn.Parameter(torch.ones(3)),
    }
    settings = TrainingSettings(weight_decay=0.1, head_learning_rate=0.5)
    optimiser = make_optimiser(parameters, {"head.weight", "head.bias"}, settings, 0.25, {})
    set_rates(optimiser, 0.5)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for name, parameter in parameters.items()
        if any(parameter is other for other in group["params"])
    }
    assert found == {
        "body.weight": (0.125, 0.1),
        "body.bias": (0.125, 0.0),
        "head.weight": (0.25, 0.1),
        "head.bias": (0.25, 0.0),
    }
    # Decay with no gradient shrinks matrices alone: w · (1 − rate · decay).
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert parameters["body.bias"].eq(1).all() and parameters["head.bias"].eq(1).all()
    assert parameters["body.weight"][0, 0].item() == pytest.approx(1 - 0.125 * 0.1)
    assert parameters["head.weight"][0, 0].item() == pytest.approx(1 - 0.25 * 0.1)


def test_without_a_rate_of_its_own_the_head_takes_the_common_one() -> None:
    parameters = {"a": nn.Parameter(torch.ones(2, 2)), "head": nn.Parameter(torch.ones(2, 2))}
    optimiser = make_optimiser(parameters, {"head"}, TrainingSettings(), 0.25, {})
    assert [group["lr"] for group in optimiser.param_groups] == [0.25]
    assert math.isclose(optimiser.param_groups[0]["weight_decay"], 0.01)
