"""``plan``: what fits is what keeps the limits when it is run; the best stands first."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import UsageError
from deltafit.experiments import plan as planning
from deltafit.experiments.plan import RESERVE, Limits, plan
from deltafit.methods import Full, Head, LoRA
from deltafit.training.cost_law import CostLaw, Span
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.train import train
from deltafit.training.trial import Trial

METHODS = ("lora", "full", "head")
SETTINGS = TrainingSettings(epochs=1, learning_rate=1e-3)
IN_ORDER = ("lora:rank=4", "lora:rank=2", "full", "head")
GRID: dict[str, Any] = {"ranks": (4, 2), "lengths": (4, 8, 64), "batches": (2, 4)}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Trials in this process: a token takes a hundredth of a second; what was tried."""
    calls: list[Any] = []

    def call(function: Callable[..., Trial], *arguments: Any) -> Trial:
        calls.append(arguments[0])
        per_token = 0.02 if isinstance(arguments[0].method, Full) else 0.01
        return replace(
            function(*arguments), steps=CostLaw((0.1, per_token, 0.0)), loading=0.0, looking=0.0,
            checking=0.0, proving=0.0, evaluating=CostLaw((0.0, 0.0, 0.0)), freezing=None,
        )  # fmt: skip

    monkeypatch.setattr(planning, "in_own_process", call)
    return calls


def test_best_first(model: str, data: DataConfig, here: list[Any]) -> None:
    found = plan(model, data, minutes=60, methods=METHODS, settings=SETTINGS, **GRID)
    assert not found.others and not found.problems
    # No text is longer than 9 tokens, so 64 leaves all, and 8 all but a few hundredths.
    assert [(str(each.method), each.max_length) for each in found.fitting] == [
        *((method, 64) for method in IN_ORDER),
        *((method, length) for method in IN_ORDER for length in (8, 4)),
    ]
    assert found.fitting[0].kept == 1 and 0.9 < found.fitting[4].kept < 0.99
    # The larger batch makes fewer steps, which cost something each.
    assert {each.batch_size for each in found.fitting} == {4}
    assert {each.other_batches for each in found.fitting} == {(2,)}
    trainable = {str(each.method): each.trainable for each in found.fitting}
    assert trainable["head"] < trainable["lora:rank=2"] < trainable["lora:rank=4"]
    assert len(here) == 4  # two ranks, full and head
    content = found.to_dict()
    assert content["fitting"][0]["method"] == "lora:rank=4"


def test_a_hundredth_of_the_tokens_is_as_good_as_none(
    model: str, data: DataConfig, here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = planning.in_own_process

    def with_one_long_text(function: Callable[..., Trial], *arguments: Any) -> Trial:
        trial = call(function, *arguments)
        return replace(trial, lengths={**trial.lengths, "train": [9, *[4] * 39]})

    monkeypatch.setattr(planning, "in_own_process", with_one_long_text)
    methods = ("lora:rank=2", "head")
    words: dict[str, Any] = {**GRID, "ranks": (2,)}
    found = plan(model, data, minutes=60, methods=methods, settings=SETTINGS, **words)
    assert [(str(each.method), each.max_length) for each in found.fitting] == [
        *((method, length) for method in methods for length in (64, 8)),
        *((method, 4) for method in methods),
    ]
    assert found.fitting[1].kept == pytest.approx(0.994, abs=5e-4)


@pytest.mark.slow
def test_what_does_not_fit_says_why(model: str, data: DataConfig, here: list[Any]) -> None:
    long = plan(model, data, minutes=0.05, methods=METHODS, settings=SETTINGS, **GRID)
    assert {each.exceeded for each in long.others} == {("time",)}
    assert {str(each.method) for each in long.others if each.max_length == 64} >= {"full"}
    for each in long.fitting:
        assert each.whole is not None and each.whole.high <= 3
    for each in long.others:
        assert each.whole is not None and each.whole.high > 3
    small = plan(model, data, ram=10**6, methods=("head",), settings=SETTINGS, **GRID)
    assert not small.fitting
    assert {each.exceeded for each in small.others} == {("memory",)}


@pytest.mark.slow
def test_a_rank_between_two_costs_what_lies_between(
    model: str, data: DataConfig, here: list[Any]
) -> None:
    found = plan(
        model, data, minutes=60, methods=("lora",), ranks=(2, 3, 8), lengths=(8,), batches=(4,),
        settings=SETTINGS,
    )  # fmt: skip
    eight, three, two = found.fitting
    assert [each.method for each in found.fitting] == [LoRA(rank=8), LoRA(rank=3), LoRA(rank=2)]
    assert three.trainable - two.trainable == (eight.trainable - two.trainable) / 6
    assert len(here) == 2
    low, high = sorted((two.memory, eight.memory))
    assert low <= three.memory <= high


@pytest.mark.slow
def test_too_large_to_be_tried(
    model: str, data: DataConfig, monkeypatch: pytest.MonkeyPatch, here: list[Any]
) -> None:
    def refused(foretold: dict[str, int]) -> str | None:
        return "It is too large." if len(here) < limit else None

    monkeypatch.setattr("deltafit.training.trial.too_large", refused)
    for limit, count in ((3, 3), (9, 4)):
        here.clear()
        grid = {**GRID, "batches": (2, 4, 8)}
        found = plan(model, data, ram=10**12, methods=("head",), settings=SETTINGS, **grid)
        assert len(here) == count
        tried = [(each.settings.max_length, each.settings.batch_size) for each in here]
        assert tried == [(64, 4), (8, 4), (4, 4), (4, 2)][:count]
        if limit == 3:
            assert len(found.fitting) == 3 and found.fitting[0].max_length == 64
        else:
            assert found.problems == {"head": "It is too large."} and not found.fitting
            assert all(each.whole is None and not each.fits for each in found.others)


def test_limits() -> None:
    limits = Limits(1000, 60)
    inside = round(1000 / (1 + RESERVE)) - 1
    assert limits.exceeded(inside, Span(50, 40, 60)) == ()
    assert limits.exceeded(inside + 2, Span(50, 40, 61)) == ("memory", "time")
    assert limits.exceeded(1, None) == ()
    for wrong in ((None, None), (0, None), (None, 0.0), (None, float("nan"))):
        with pytest.raises(UsageError, match=r"limit"):
            Limits(*wrong)


def test_wrong_arguments(model: str, data: DataConfig) -> None:
    with pytest.raises(UsageError, match="The rank 4 is given twice"):
        plan(model, data, minutes=1, ranks=(4, 4))
    with pytest.raises(UsageError, match="at least one method"):
        plan(model, data, minutes=1, methods=())
    with pytest.raises(UsageError, match="batch_size must be"):
        plan(model, data, minutes=1, batches=(0,))
    with pytest.raises(UsageError, match="no method"):
        plan(model, data, minutes=1, methods=("nonsense",))


@pytest.mark.slow
def test_what_fits_keeps_the_limits_when_it_is_run(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    ram, minutes = 2 * 10**9, 1.0
    found = plan(
        model, data, ram=ram, minutes=minutes, methods=("lora", "head"), ranks=(2,),
        lengths=(8, 64), batches=(4,), settings=SETTINGS,
    )  # fmt: skip
    assert len(found.fitting) == 4 and {type(e.method) for e in found.fitting} == {LoRA, Head}
    for number, each in enumerate(found.fitting):
        settings = replace(SETTINGS, max_length=each.max_length, batch_size=each.batch_size)
        result = train(model, data, tmp_path / str(number), method=each.method, settings=settings)
        costs = result.metrics["costs"]
        assert costs["trainable_parameters"] == each.trainable
        assert costs["training_seconds"] < 60 * minutes
        assert costs["peak_memory_bytes"] < ram
