"""The law of what passes cost, and the sample of steps that it is fitted to."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deltafit.training.cost_law import CostLaw, Span, Work, added, exactly, total, work_of
from deltafit.training.course import Examples
from deltafit.training.settings import TrainingSettings
from deltafit.training.trial_steps import STEPS, Clock, arranged
from deltafit.training.workload import (
    chosen_steps,
    evaluation_passes,
    passes_work,
    step_work,
    steps_of,
    work_of_epochs,
)

LENGTHS = st.lists(st.integers(2, 120), min_size=30, max_size=120)
COEFFICIENTS = st.tuples(*(st.floats(1e-6, 1.0) for _ in range(3)))


def cost(coefficients: Work, work: Work) -> float:
    return float(np.dot(np.array(coefficients) * (1, 1e-2, 1e-4), work))


@given(LENGTHS, COEFFICIENTS, st.integers(2, 6), st.booleans())
def test_the_time_of_a_run_is_exact_where_cost_is_linear(
    lengths: list[int], coefficients: Work, batch: int, packed: bool
) -> None:
    """Whatever a step, a token and a square cost: ten steps say what all epochs take."""
    settings = TrainingSettings(epochs=3, batch_size=batch)
    _, timed = chosen_steps(lengths, settings, STEPS, packed=packed)
    works = [step_work(rows, lengths, settings, packed=packed) for rows in timed]
    scaled = np.array(works) / np.mean(works, axis=0)
    assume(np.linalg.cond(scaled) < 1e4)  # or they do not tell the three apart
    law = CostLaw.fitted(works, [cost(coefficients, work) for work in works])
    whole = added(work_of_epochs(lengths, settings, packed=packed))
    expected = pytest.approx(cost(coefficients, whole), rel=1e-6)
    assert law.of(whole).seconds == expected
    assert law.of(whole).low == expected and law.of(whole).high == expected


@given(LENGTHS, st.integers(1, 6))
def test_the_works_of_epochs_hold_every_text_once_an_epoch(lengths: list[int], batch: int) -> None:
    settings = TrainingSettings(epochs=2, batch_size=batch)
    squares = sum(length**2 for length in lengths)
    steps = -(-len(lengths) // batch)
    for work in work_of_epochs(lengths, settings, packed=True):
        assert work == (steps, sum(lengths), squares)
    longer = work_of_epochs(lengths, settings, packed=True, longer=3)[0]
    assert longer[1] == sum(lengths) + 3 * len(lengths)
    padded = work_of_epochs(lengths, settings, packed=False)[0]
    assert padded[1] >= sum(lengths) and padded[2] >= squares
    passes = passes_work(evaluation_passes(lengths), lengths)
    assert added(passes)[1] >= sum(lengths)


def test_work_of_passes() -> None:
    assert work_of([[3, 2], [5]], packed=True) == (1, 10, 9 + 4 + 25)
    assert work_of([[3, 2], [5]], packed=False) == (1, 11, 9 + 9 + 25)
    assert added([]) == (0, 0, 0)
    assert total([Span(1, 0, 2), exactly(3)]) == Span(4, 3, 5)


def test_the_range_is_that_of_the_quickest_and_the_slowest() -> None:
    works: list[Work] = [(1, 10, 100)] * 4
    law = CostLaw.fitted(works, [1.0, 1.0, 0.5, 1.5])
    found = law.of((8, 80, 800))
    assert found.seconds == pytest.approx(8)
    assert (found.low, found.high) == (pytest.approx(4), pytest.approx(12))
    assert CostLaw.fitted(works, [0.0] * 4).of((8, 80, 800)) == Span(0, 0, 0)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 3))
def test_the_sample_is_fair_and_holds_the_largest_pass(
    lengths: list[int], batch: int, accumulation: int
) -> None:
    settings = TrainingSettings(epochs=2, batch_size=batch, accumulation=accumulation)
    warm_up, timed = chosen_steps(lengths, settings, STEPS, packed=True)
    assert len(timed) == STEPS
    assert {len(rows) for rows in (*warm_up, *timed)} == {min(batch * accumulation, len(lengths))}
    full = [r for r in steps_of(len(lengths), settings, 0) if len(r) == len(timed[0])]
    tokens = sorted(sum(lengths[row] for row in rows) for rows in full)
    chosen = sorted(sum(lengths[row] for row in rows) for rows in timed)
    for part, own in enumerate(chosen):  # one of each tenth
        first, behind = part * len(tokens) // STEPS, -(-(part + 1) * len(tokens) // STEPS)
        assert tokens[first] <= own <= tokens[behind - 1]
    every = [rows for epoch in (0, 1) for rows in steps_of(len(lengths), settings, epoch)]
    if accumulation == 1:
        largest = max(sum(lengths[r] for r in rows) for rows in every if len(rows) == len(full[0]))
        assert sum(lengths[row] for row in warm_up[0]) == largest


@given(st.integers(3, 60), st.integers(1, 16), st.booleans())
def test_an_ordinary_loop_takes_the_steps_that_were_arranged(
    count: int, batch: int, twice: bool
) -> None:
    rows = [[number] * (1 + number % 7) for number in range(count)]
    settings = TrainingSettings(batch_size=batch, epochs=5, patience=2, seed=3)
    train = Examples(rows, [number % 3 for number in range(count)])
    plan = arranged(train, settings, [4, 7], packed=True, twice=twice)
    steps = steps_of(len(plan.examples), plan.settings, 0)
    warm_up, timed = chosen_steps([len(r) for r in rows], settings, STEPS, packed=True)
    wanted = [*warm_up, *(timed if twice else []), *timed]
    assert len(steps) == plan.wanted == len(wanted)
    assert plan.unmeasured == plan.wanted - STEPS
    for number, (step, rows_of) in enumerate(zip(steps, wanted, strict=True)):
        taken = [plan.examples.rows[row] for row in step]
        assert Counter(row[0] for row in taken) == Counter(rows_of)
        if number >= plan.unmeasured:
            limit = (4, 7)[(number - plan.unmeasured) % 2]
            assert all(len(row) == min(1 + row[0] % 7, limit) for row in taken)
        assert [plan.examples.labels[r] for r in step] == [row[0] % 3 for row in taken]


def test_a_clock_times_steps_and_ends_when_there_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    for seconds, done in ((1.0, 13), (20.0, 6), (100.0, 6)):
        clock = Clock(unmeasured=3, wanted=13)
        clock.start("frozen layers", 2, 0)
        now += 5
        clock.step(2, None, None)
        with clock.ending():
            clock.start("training", 99, 0)
            for step in range(99):
                now += seconds
                clock.step(step, 0.5, 1.0)
        assert clock.seconds == {"frozen layers": [5.0], "training": [seconds] * done}
