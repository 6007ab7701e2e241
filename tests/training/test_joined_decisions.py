"""Joined runs that cannot share a pass, that were begun differently, or of which one has failed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltafit.engine import division
from deltafit.errors import TrainingError, UsageError
from deltafit.training.checkpoints import latest_checkpoint
from deltafit.training.course import Course
from deltafit.training.interruption import Interrupted
from deltafit.training.settings import TrainingSettings
from deltafit.training.sharing import decided_for_all
from tests.training.joined_runs import Plan, joined_loop, values_of
from tests.training.test_resume import InterruptAt
from tests.training.tiny_runs import adapted, loop_on, save_model

SETTINGS = TrainingSettings(epochs=2, batch_size=8, weight_decay=0.0, clip=None, warmup=0.0)


def test_a_model_whose_layers_see_more_than_rows_is_refused_before_training(
    tmp_path: Path,
) -> None:
    # DeBERTa v3's query layer reads the relative positions too, which belong to no row.
    model = save_model(tmp_path / "model", "deberta-v2")
    plans = {str(seed): Plan(replace(SETTINGS, seed=seed)) for seed in (0, 1)}
    loop = joined_loop(model, tmp_path / "joined", plans)
    with pytest.raises(UsageError, match=r"one pass.*without --jointly"):
        loop.run({})
    assert all(learner.course.step == 0 for learner in loop.learners.values())


def test_runs_whose_rows_get_mixed_up_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one seed, whose untrained adapters give the very same."""
    cut = division._Sheet.cut
    monkeypatch.setattr(division._Sheet, "cut", lambda *args: [*reversed(cut(*args))])
    model = save_model(tmp_path / "model")
    plans = {"fast": Plan(SETTINGS, rate=1e-2), "slow": Plan(SETTINGS, rate=1e-3)}
    loop = joined_loop(model, tmp_path / "joined", plans)
    with pytest.raises(UsageError, match=r"does not give the same .*one pass.*without --jointly"):
        loop.run({})
    assert all(learner.course.step == 0 for learner in loop.learners.values())


@pytest.mark.slow
def test_a_run_that_failed_stays_out_when_the_others_are_resumed(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", dropout=True)
    plans = {
        "wild": Plan(SETTINGS, rate=1e20),
        "calm": Plan(replace(SETTINGS, seed=1)),
        "mild": Plan(replace(SETTINGS, seed=2)),
    }
    whole = joined_loop(model, tmp_path / "whole", plans)
    failures = whole.run({})
    folder = tmp_path / "parts"
    stopped = joined_loop(model, folder, plans, reporter=InterruptAt(4))
    with pytest.raises(Interrupted):
        stopped.run({})
    checkpoints = {n: latest_checkpoint(folder / n / "checkpoints") for n in plans}
    again = joined_loop(model, folder, plans)
    resumed = again.run({n: c for n, c in checkpoints.items() if c is not None})
    assert list(resumed) == list(failures) == ["wild"]
    assert resumed["wild"].what == failures["wild"].what
    for name in ("calm", "mild"):
        expected = values_of(whole.classifier, name)
        for key, value in values_of(again.classifier, name).items():
            assert torch.equal(value, expected[key]), key
    alone = loop_on(adapted(model, plans["wild"].method), folder / "wild", SETTINGS)
    with pytest.raises(TrainingError, match="diverged"):
        alone.run(checkpoints["wild"])


def test_what_was_decided_for_one_counts_for_those_that_begin() -> None:
    shared = decided_for_all([Course(), Course(packed=True, kept=False), Course(precision="bf16")])
    assert (shared.packed, shared.kept, shared.precision) == (True, False, "bf16")
    for name in ("precision", "attention_precision"):
        decided = [Course(**{name: "float32"}), Course(**{name: "bf16"})]  # type: ignore[arg-type]
        with pytest.raises(
            UsageError, match=r"different decisions on the precision( of att|, and)"
        ):
            decided_for_all(decided)
