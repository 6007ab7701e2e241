"""The loop against plain torch, and what must not change its result."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from deltafit.data import class_weights, epoch_order
from deltafit.errors import UsageError
from deltafit.methods import LoRA, Method
from deltafit.tasks.classification import collate, logits_of
from deltafit.tasks.inference import compute_logits
from deltafit.training.checkpoints import latest_checkpoint, latest_state
from deltafit.training.course import Examples
from deltafit.training.interruption import Halted
from deltafit.training.optimisation import rate_factor
from deltafit.training.settings import TrainingSettings
from tests.tiny_models import PAD
from tests.training.tiny_runs import (
    adapted,
    loop_on,
    save_model,
    tiny_examples,
    trained_values,
)

Values = dict[str, torch.Tensor]
# 22 rows: steps of 8, 8 and 6.
EIGHT = TrainingSettings(epochs=2, batch_size=8, weight_decay=0.05, warmup=0.3, clip=0.5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def bert_with_dropout(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"), dropout=True)


def train(
    model: str,
    folder: Path,
    settings: TrainingSettings,
    method: Method | None = None,
    *,
    validation: Examples | None = None,
    head: str = "architecture",
) -> Values:
    classifier = adapted(model, method, head=head)
    loop_on(classifier, folder, settings, validation=validation).run()
    return trained_values(classifier)


def assert_same(first: Values, second: Values, tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=name)


def test_equals_a_plain_torch_loop(bert: str, tmp_path: Path) -> None:
    settings = replace(
        EIGHT, label_smoothing=0.1, class_weights="balanced", head_learning_rate=0.03
    )
    examples = tiny_examples()
    classifier = adapted(bert, LoRA(rank=2))
    model, named = classifier.model, dict(classifier.model.named_parameters())
    chosen = {name: p for name, p in named.items() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [p],
                "lr": (peak := 0.03 if name in classifier.head_parameters else 0.01),
                "peak": peak,
                "weight_decay": 0.05 if p.ndim == 2 else 0.0,
            }
            for name, p in chosen.items()
        ]
    )
    weights = torch.tensor(class_weights(examples.labels, 3))
    steps = [
        epoch_order(22, 0, epoch)[start : start + 8] for epoch in (0, 1) for start in (0, 8, 16)
    ]
    model.train()
    for number, rows in enumerate(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate_factor(number, 6, "linear", 0.3)
        batch = collate([examples.rows[row] for row in rows], PAD, positions=False)
        labels = torch.tensor([examples.labels[row] for row in rows])
        logits = logits_of(model, batch)
        functional.cross_entropy(logits, labels, weight=weights, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(list(chosen.values()), 0.5)
        optimiser.step()
        optimiser.zero_grad()

    assert_same(train(bert, tmp_path, settings, LoRA(rank=2)), trained_values(classifier), 1e-6)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_accumulation_changes_nothing(bert: str, tmp_path: Path, weights: str) -> None:
    values = [
        train(
            bert,
            tmp_path / f"{size}",
            replace(
                EIGHT,
                batch_size=size,
                accumulation=8 // size,
                class_weights=weights,  # type: ignore[arg-type]  # parametrised
                label_smoothing=0.1,
            ),
        )
        for size in (8, 4, 2)
    ]
    assert_same(values[0], values[1], 1e-6)
    assert_same(values[0], values[2], 1e-6)


def test_the_reported_loss_is_the_mean_over_the_rows(bert: str, tmp_path: Path) -> None:
    classifier = adapted(bert)
    examples = tiny_examples()
    settings = TrainingSettings(epochs=1, batch_size=4, accumulation=2, learning_rate=1e-12)
    loop = loop_on(classifier, tmp_path, settings, learning_rate=1e-12)
    expected = functional.cross_entropy(
        torch.tensor(compute_logits(classifier, examples.rows)), torch.tensor(examples.labels)
    )
    course = loop.run()
    assert course.history[-1]["train_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert course.examples == len(examples) and course.step == 3


def test_evaluating_changes_no_parameter(bert_with_dropout: str, tmp_path: Path) -> None:
    settings = replace(EIGHT, clip=None)
    validation = tiny_examples(9, seed=1)
    ends = []
    for name, every, rows in (("never", None, None), ("always", 1, validation)):
        train(
            bert_with_dropout,
            tmp_path / name,
            replace(settings, evaluate_every=every),
            validation=rows,
        )
        checkpoint = latest_checkpoint(tmp_path / name / "checkpoints")
        assert checkpoint is not None and checkpoint.state["step"] == 6
        ends.append(checkpoint.tensors)
    assert_same(ends[0], ends[1])


def test_runs_repeat_bit_for_bit_and_seeds_differ(bert_with_dropout: str, tmp_path: Path) -> None:
    first = train(bert_with_dropout, tmp_path / "1", EIGHT)
    torch.manual_seed(99)
    assert_same(first, train(bert_with_dropout, tmp_path / "2", EIGHT))
    other = train(bert_with_dropout, tmp_path / "3", replace(EIGHT, seed=1))
    assert all(not torch.equal(first[name], other[name]) for name in first)


def test_only_what_is_trained_moves(bert: str, tmp_path: Path) -> None:
    classifier = adapted(bert, LoRA(rank=2))
    before = {name: p.detach().clone() for name, p in classifier.model.named_parameters()}
    trainable = {name for name, p in classifier.model.named_parameters() if p.requires_grad}
    loop_on(classifier, tmp_path, EIGHT).run()
    for name, parameter in classifier.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trainable), name


class _Scripted:
    """Gives an evaluation's figures from a list, in place of measuring them."""

    def __init__(self, key: str, values: list[float]) -> None:
        self.key, self.values = key, iter(values)

    def __call__(self, *_: object) -> tuple[dict[str, float], bool]:
        return {self.key: next(self.values)}, False


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.2, 0.8, 0.8, 0.7, 0.6, 0.5], 2),  # the first of equals
        ("log_loss", [0.9, 0.8, 0.7, 0.9, 0.95, 1.0], 3),  # lower is better
    ],
)
def test_the_best_checkpoint_is_put_back(
    bert: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    values: list[float],
    best: int,
) -> None:
    monkeypatch.setattr("deltafit.training.learner.validate", _Scripted(metric, values))
    settings = replace(EIGHT, evaluate_every=1, metric=metric)
    classifier = adapted(bert)
    loop = loop_on(classifier, tmp_path, settings, validation=tiny_examples(3))
    kept: dict[int, Values] = {}
    save = loop.save

    def keep_and_save() -> None:
        kept[loop.course.step] = trained_values(classifier)
        save()

    monkeypatch.setattr(loop, "save", keep_and_save)
    course = loop.run()
    assert course.step == 6 and course.best_step == best
    assert_same(trained_values(classifier), kept[best])


def test_patience_stops_after_so_many_evaluations_without_a_better_one(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = _Scripted("loss", [0.5, 0.6, 0.4, 0.4, 0.5, 0.1])
    monkeypatch.setattr("deltafit.training.learner.validate", figures)
    settings = replace(EIGHT, evaluate_every=1, metric="loss", patience=2)
    course = loop_on(adapted(bert), tmp_path, settings, validation=tiny_examples(3)).run()
    assert course.step == 5 and course.best_step == 3


def test_halted_after_an_evaluation_it_goes_on_as_if_it_had_not_been(
    bert: str, tmp_path: Path
) -> None:
    settings = replace(EIGHT, evaluate_every=2)
    undisturbed = train(bert, tmp_path / "whole", settings, validation=tiny_examples(3))
    asked: list[int] = []

    def halt(history: Sequence[Mapping[str, Any]]) -> bool:
        asked.append(len(history))
        return len(history) == 2

    for _ in range(2):  # the second time at once
        loop = loop_on(
            adapted(bert), tmp_path, settings, validation=tiny_examples(3), halt=halt
        )  # fmt: skip
        with pytest.raises(Halted, match="after step 4 of 6"):
            loop.run(latest_checkpoint(tmp_path / "checkpoints"))
        state = latest_state(tmp_path / "checkpoints")
        assert state is not None and [e["step"] for e in state["course"]["history"]] == [2, 4]
    assert asked == [1, 2, 2]
    classifier = adapted(bert)
    loop = loop_on(
        classifier, tmp_path, settings, validation=tiny_examples(3), halt=lambda h: len(h) == 3
    )  # fmt: skip
    course = loop.run(latest_checkpoint(tmp_path / "checkpoints"))
    assert course.step == 6, "after the last one it is not asked"
    assert_same(trained_values(classifier), undisturbed)


def test_patience_without_validation_rows_is_refused(bert: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="validation"):
        loop_on(adapted(bert), tmp_path, replace(EIGHT, patience=1))


def test_evaluation_comes_every_so_many_steps_and_at_the_end(bert: str, tmp_path: Path) -> None:
    settings = replace(EIGHT, evaluate_every=4, head_learning_rate=1e-3)
    course = loop_on(adapted(bert), tmp_path, settings, validation=tiny_examples(6)).run()
    assert [entry["step"] for entry in course.history] == [4, 6]
    assert [entry["epoch"] for entry in course.history] == [pytest.approx(4 / 3), 2]
    assert {"accuracy", "macro_f1", "log_loss", "loss"} <= course.history[0].keys()
