"""Where a profiled step's time is said to go: every operator once, and each where it belongs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import profiling
import sweep
from deltafit.engine.dropout import drop_in_bulk
from deltafit.engine.explicit import explicit_attention
from deltafit.engine.groups import Group
from profiling import COLUMNS, KINDS, PYTHON, REST, predicted, profiled, row_of, summed
from tests.benchmarks.test_worker import work_on
from works import ADAPTER_NAMES, OURS, PIPELINE, REDUCED, TRAINER

X = torch.randn(64, 64, requires_grad=True)


def attend() -> torch.Tensor:
    sheet = X.view(64, 4, 16)
    groups = [Group((32, 32), causal=True, mask=None)]
    return explicit_attention(sheet, sheet, sheet, groups, groups, scaling=1.0, dropout=0.1)


def optimise() -> torch.Tensor:
    parameter = nn.Parameter(X.detach().clone())
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], fused=True).step()
    return X.sum()


WORK: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "linear": (lambda: functional.linear(X, X, X[0]), "matrix products"),
    "matmul": (lambda: X @ X, "matrix products"),
    "our attention": (attend, "attention"),
    "torch's attention": (
        lambda: functional.scaled_dot_product_attention(*[X.view(1, 4, 64, 16)] * 3, dropout_p=0.1),
        "attention",
    ),
    "our dropout": (lambda: drop_in_bulk(X, 0.1), "dropout and random numbers"),
    "torch's dropout": (lambda: functional.dropout(X, 0.1), "dropout and random numbers"),
    "gelu": (lambda: functional.gelu(X), "activation functions"),
    "tanh": (X.tanh, "activation functions"),
    "layer norm": (lambda: functional.layer_norm(X, (64,)), "norms"),
    "index": (lambda: X.index_select(0, torch.tensor([3, 1])), "copies and indexing"),
    "concatenation": (lambda: torch.cat([X, X]), "copies and indexing"),
    "optimiser": (optimise, "optimiser"),
    "sine": (X.sin, REST),
}


@pytest.mark.parametrize(("work", "kind"), WORK.values(), ids=WORK)
def test_an_operator_counts_where_it_belongs(work: Callable[[], torch.Tensor], kind: str) -> None:
    upstream = torch.ones_like(work())  # and warmed up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(20):
            output = work()
            if kind != "optimiser":
                torch.autograd.grad(output, X, upstream)
    sums = summed(profiler.events(), 1.0)
    spent = {name: sums[name] for name in (*KINDS, REST)}
    # Views and the gradients' sums stand beside the operator that is meant.
    assert {kind} <= {name for name in spent if spent[name]} <= {kind, REST, "copies and indexing"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "side"),
    [
        ("lora:target_modules=query,value", OURS),
        ("lora:target_modules=query,value", TRAINER),
        ("lora:target_modules=query,value", REDUCED),
        ("sweep", OURS),
    ],
)
def test_the_sums_are_complete(
    method: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[list[FunctionEvent], float]] = []

    def keep(events: list[FunctionEvent], seconds: float) -> dict[str, float]:
        kept.append((list(events), seconds))
        return summed(events, seconds)

    monkeypatch.setattr(profiling, "summed", keep)
    monkeypatch.setattr(sweep, "METHODS", sweep.METHODS[:2])
    sums = profiled(work_on(tmp_path, method), side, tmp_path, 4)
    ((events, seconds),) = kept
    assert set(sums) == {*KINDS, REST, PYTHON}
    assert sum(sums.values()) == pytest.approx(seconds)
    # The outermost operators, with all that runs within them, are all the time in operators.
    outermost = sum(e.cpu_time_total for e in events if e.cpu_parent is None) / 1e6
    assert sum(sums.values()) - sums[PYTHON] == pytest.approx(outermost, rel=1e-3)
    assert all(part > 0 for part in sums.values())
    optimiser_steps = [e for e in events if e.name.startswith("Optimizer.step")]
    runs = 2 if method == "sweep" else 1
    assert len(optimiser_steps) == 4 * runs
    cells = row_of("a work", side, sums, 4)
    assert len(cells) == len(COLUMNS) and float(cells[2]) == pytest.approx(250 * seconds, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "side"),
    [("mixed", OURS), ("mixed", ADAPTER_NAMES), ("predict", OURS), ("predict", PIPELINE)],
)
def test_prediction_is_profiled_alone(
    method: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[FunctionEvent]] = []

    def keep(events: list[FunctionEvent], seconds: float) -> dict[str, float]:
        kept.append(list(events))
        return summed(events, seconds)

    monkeypatch.setattr(profiling, "summed", keep)
    sums = predicted(work_on(tmp_path, method), side, tmp_path, 2)
    assert set(sums) == {*KINDS, REST, PYTHON} and sums["matrix products"] > 0 < sums["attention"]
    names = {event.name for event in kept[0]}
    assert not any("backward" in name.lower() or "Optimizer" in name for name in names)


def test_a_row_is_in_milliseconds_of_a_step_and_shares() -> None:
    seconds = dict.fromkeys((*KINDS, REST, PYTHON), 0.0) | {"attention": 0.03, PYTHON: 0.01}
    cells = dict(zip(COLUMNS, row_of("a work", OURS, seconds, 4), strict=True))
    assert (cells["ms a step"], cells["attention"], cells[PYTHON]) == (
        *("10.0", "7.5 (75%)", "2.5 (25%)"),
    )
    assert cells["norms"] == "0.0 (0%)"
