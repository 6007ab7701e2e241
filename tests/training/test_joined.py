"""Runs trained jointly come out as each does alone, whatever happens to the others."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltafit.adapters import model_adapters
from deltafit.engine import StateStores, mixed
from deltafit.errors import UsageError
from deltafit.methods import LoRA
from deltafit.training.checkpoints import latest_checkpoint
from deltafit.training.interruption import Interrupted
from deltafit.training.progress import Silent
from deltafit.training.settings import TrainingSettings
from tests.training.joined_runs import Plan, Values, alone, joined_loop, trained, values_of
from tests.training.test_resume import InterruptAt
from tests.training.tiny_runs import adapted, loop_on, save_model, tiny_examples

# 22 rows in steps of 8, 8 and 6, each of two passes at least: 21 steps.
SETTINGS = TrainingSettings(
    epochs=7, batch_size=4, accumulation=2, weight_decay=0.05, warmup=0.3, clip=0.5
)
PLANS = {
    "first": Plan(SETTINGS),
    "weighted": Plan(
        replace(SETTINGS, seed=1, class_weights="balanced", label_smoothing=0.1, clip=None),
        LoRA("all-linear", rank=4),
        3e-3,
    ),
    "short": Plan(
        replace(SETTINGS, seed=2, epochs=4, schedule="cosine", head_learning_rate=1e-3),
        LoRA(rank=1, alpha=4),
        2e-2,
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: save_model(folder / name, name) for name in ("bert", "gpt2", "llama", "t5")}
    return {**made, "dropout": save_model(folder / "dropout", dropout=True)}


def assert_close(found: Values, expected: Values, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "head", "packed", "budget", "checkpointing"),
    [
        ("bert", "architecture", True, 4096, False),
        ("bert", "architecture", False, 4096, False),
        ("bert", "mean", True, 1, True),
        ("gpt2", "architecture", True, 4096, False),
        ("gpt2", "architecture", False, 1, False),
        ("gpt2", "architecture", False, 4096, True),
        ("llama", "architecture", True, 4096, False),
        ("t5", "mean", True, 4096, False),
        ("t5", "mean", True, 1, True),
    ],
)
def test_every_run_comes_out_as_alone(
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    head: str,
    packed: bool,
    budget: int,
    checkpointing: bool,
) -> None:
    monkeypatch.setattr("deltafit.training.joined_gradients.TOKENS_OF_A_PASS", budget)
    packing = "on" if packed else "off"
    plans = {
        name: replace(
            plan,
            settings=replace(plan.settings, gradient_checkpointing=checkpointing, packing=packing),
        )
        for name, plan in PLANS.items()
    }
    loop = joined_loop(models[model], tmp_path / "joined", plans, head=head)
    together = trained(loop)
    assert loop.gradients.packed is packed
    for name, plan in plans.items():
        expected, course = alone(models[model], tmp_path / name, plan, head=head)
        assert_close(together[name], expected)
        own = loop.learners[name].course
        assert (own.step, own.examples) == (course.step, course.examples)
        losses = [entry["train_loss"] for entry in course.history]
        assert [entry["train_loss"] for entry in own.history] == pytest.approx(losses, abs=1e-5)
    assert loop.learners["short"].course.step == 12 and loop.learners["first"].course.step == 21


def test_two_seeds_come_out_as_alone_and_differ(models: dict[str, str], tmp_path: Path) -> None:
    plans = {str(seed): Plan(replace(SETTINGS, epochs=2, seed=seed)) for seed in (0, 1)}
    together = trained(joined_loop(models["bert"], tmp_path / "joined", plans))
    for name, plan in plans.items():
        start = values_of(adapted(models["bert"], seed=plan.settings.seed))
        assert all(not torch.equal(start[key], together[name][key]) for key in start)
        assert_close(together[name], alone(models["bert"], tmp_path / name, plan)[0])
    assert all(not torch.equal(together["0"][key], together["1"][key]) for key in start)


@pytest.mark.parametrize(("budget", "passes"), [(4096, 1), (1, 4)])
def test_as_few_passes_as_the_budget_allows(
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
    passes: int,
) -> None:
    calls: list[Any] = []

    def counted(model: torch.nn.Module, segments: Any) -> Any:
        calls.append(segments)
        return mixed(model, segments)

    monkeypatch.setattr("deltafit.training.joined_gradients.mixed", counted)
    monkeypatch.setattr("deltafit.training.joined_gradients.TOKENS_OF_A_PASS", budget)
    plans = {str(seed): Plan(replace(SETTINGS, epochs=1, seed=seed)) for seed in (0, 1)}
    joined_loop(models["bert"], tmp_path, plans).run({})
    assert len(calls) == 3 * passes  # of two runs in three steps, each of two passes alone
    if passes == 1:
        assert all({name for name, _ in segments} == {"0", "1"} for segments in calls)


@pytest.mark.parametrize("packed", [True, False])
def test_a_run_that_diverges_leaves_and_the_others_go_on(
    models: dict[str, str], tmp_path: Path, packed: bool
) -> None:
    packing = "on" if packed else "off"
    settings = replace(SETTINGS, epochs=2, clip=None, warmup=0.0, packing=packing)
    plans = {"wild": Plan(settings, rate=1e20), "calm": Plan(replace(settings, seed=1))}
    loop = joined_loop(models["bert"], tmp_path / "joined", plans)
    failures = loop.run({})
    assert list(failures) == ["wild"] and "diverged at step" in failures["wild"].what
    assert loop.learners["wild"].course.step < 6 == loop.learners["calm"].course.step
    expected, _ = alone(models["bert"], tmp_path / "calm", plans["calm"])
    assert_close(values_of(loop.classifier, "calm"), expected)


class Clock(Silent):
    """Keeps when training began and when its last step was told."""

    began = ended = 0.0

    def start(self, what: str, total: int | None, done: int) -> None:
        self.began = time.perf_counter()

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        self.ended = time.perf_counter()


def test_the_runs_seconds_are_shares_of_the_time(models: dict[str, str], tmp_path: Path) -> None:
    plans = {str(seed): Plan(replace(SETTINGS, epochs=2, seed=seed)) for seed in range(3)}
    clock = Clock()
    loop = joined_loop(models["bert"], tmp_path, plans, reporter=clock)
    loop.run({})
    seconds = [learner.course.seconds for learner in loop.learners.values()]
    assert min(seconds) > 0 and sum(seconds) < clock.ended - clock.began


@pytest.mark.slow
def test_patience_and_the_best_evaluation_are_each_runs_own(
    models: dict[str, str], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, evaluate_every=1, patience=2, metric="loss", warmup=0.0)
    plans = {
        "hasty": Plan(settings, rate=0.03),
        "patient": Plan(replace(settings, seed=1), rate=1e-3),
    }
    validation = tiny_examples(9, seed=1)
    loop = joined_loop(models["bert"], tmp_path / "joined", plans, validation=validation)
    together = trained(loop)
    for name, plan in plans.items():
        expected, course = alone(models["bert"], tmp_path / name, plan, validation=validation)
        own = loop.learners[name].course
        assert (own.step, own.best_step) == (course.step, course.best_step)
        assert [entry["loss"] for entry in own.history] == pytest.approx(
            [entry["loss"] for entry in course.history], abs=1e-4
        )
        assert_close(together[name], expected)
    assert loop.learners["hasty"].course.step < loop.learners["patient"].course.step


def checkpoints_of(folder: Path, plans: dict[str, Plan]) -> dict[str, Any]:
    found = {name: latest_checkpoint(folder / name / "checkpoints") for name in plans}
    return {name: checkpoint for name, checkpoint in found.items() if checkpoint is not None}


@pytest.mark.slow
def test_resuming_gives_the_very_parameters(models: dict[str, str], tmp_path: Path) -> None:
    plans = {
        "long": Plan(replace(SETTINGS, epochs=2)),
        "short": Plan(replace(SETTINGS, epochs=1, seed=1), LoRA(rank=2, dropout=0.2)),
    }
    whole = trained(joined_loop(models["dropout"], tmp_path / "whole", plans))
    for step in range(1, 6):
        folder = tmp_path / f"run{step}"
        loop = joined_loop(models["dropout"], folder, plans, reporter=InterruptAt(step))
        with pytest.raises(Interrupted, match=f"after step {step} of 6"):
            loop.run({})
        saved = checkpoints_of(folder, plans)
        assert {n: c.state["step"] for n, c in saved.items()} == {
            "long": step, "short": min(step, 3),
        }  # fmt: skip
        again = trained(joined_loop(models["dropout"], folder, plans), saved)
        for name in plans:
            assert_close(again[name], whole[name], tolerance=0.0)


@pytest.mark.slow
def test_a_run_begun_jointly_goes_on_alone(models: dict[str, str], tmp_path: Path) -> None:
    plans = {str(seed): Plan(replace(SETTINGS, epochs=2, seed=seed)) for seed in (0, 1)}
    with pytest.raises(Interrupted):
        joined_loop(models["bert"], tmp_path, plans, reporter=InterruptAt(4)).run({})
    for name, plan in plans.items():
        classifier = adapted(models["bert"], plan.method, seed=plan.settings.seed)
        checkpoint = latest_checkpoint(tmp_path / name / "checkpoints")
        loop_on(classifier, tmp_path / name, plan.settings).run(checkpoint)
        assert_close(
            values_of(classifier), alone(models["bert"], tmp_path / f"{name} alone", plan)[0]
        )


def test_frozen_layers_are_computed_once_for_all(models: dict[str, str], tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2)
    plans = {
        "small": Plan(settings, LoRA(rank=2, layers=(-1,))),
        "large": Plan(replace(settings, seed=1), LoRA("all-linear", rank=4, layers=(2,)), 2e-3),
    }
    states = StateStores()
    loop = joined_loop(models["bert"], tmp_path / "joined", plans, states=states)
    together = trained(loop)
    assert len(loop.constant.blocks) == 2 and states.bytes_held(in_memory=True) > 0
    for name, plan in plans.items():
        assert_close(together[name], alone(models["bert"], tmp_path / name, plan)[0])


def test_the_model_is_left_plain(models: dict[str, str], tmp_path: Path) -> None:
    plans = {str(seed): Plan(replace(SETTINGS, epochs=1, seed=seed)) for seed in (0, 1)}
    loop = joined_loop(models["bert"], tmp_path, plans)
    loop.run({})
    model = loop.classifier.model
    assert not model.training and "forward" not in model.__dict__
    assert set(model_adapters(model).adapters) == {"0", "1"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 2}, "share batch_size; it is 4 and 2"),
        ({"max_length": 7}, "share max_length; it is 256 and 7"),
        ({"patience": 3}, "needs validation rows"),
    ],
)
def test_settings_that_cannot_be_joined_are_refused(
    models: dict[str, str], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    plans = {"a": Plan(SETTINGS), "b": Plan(replace(SETTINGS, **changes))}
    with pytest.raises(UsageError, match=said):
        joined_loop(models["bert"], tmp_path, plans)


def test_other_combinations_that_cannot_be_joined_are_refused(
    models: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="at least two runs"):
        joined_loop(models["bert"], tmp_path, {"a": Plan(SETTINGS)})
    top = {"a": Plan(SETTINGS), "b": Plan(SETTINGS, LoRA(rank=2, layers=(-1,)))}
    with pytest.raises(UsageError, match="a and b cannot be trained jointly: 0 and 2 blocks"):
        joined_loop(models["bert"], tmp_path, top)
