"""Precision, and what the loop says or refuses when training goes wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn import functional

from deltafit.errors import DeltafitError
from deltafit.files import read_tensors
from deltafit.methods import Full, Head
from deltafit.tasks.inference import compute_logits
from deltafit.training.course import Examples
from deltafit.training.progress import Silent
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import train
from tests.training.test_loop import EIGHT
from tests.training.tiny_runs import adapted, loop_on, save_model, tiny_examples, write_table


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"))


def test_bf16_trains_and_leaves_a_float32_model(bert: str, tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16")
    classifier = adapted(bert, head="mean")
    validation = tiny_examples(6, seed=3)
    seen: list[torch.dtype] = []
    loop = loop_on(
        classifier,
        tmp_path,
        replace(EIGHT, evaluate_every=6),
        validation=validation,
        accelerator=accelerator,
    )
    layer = classifier.model.get_submodule("encoder.encoder.layer.0.attention.self.query")
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    course = loop.run()
    assert torch.bfloat16 in seen and seen[-1] == torch.float32
    assert "forward" not in classifier.model.__dict__
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}

    # A model that no Accelerator ever saw gives the very logits, and the evaluation had them.
    plain = adapted(bert, head="mean")
    plain.model.load_state_dict(classifier.model.state_dict())
    logits = compute_logits(plain, validation.rows)
    assert (compute_logits(classifier, validation.rows) == logits).all()
    expected = functional.cross_entropy(torch.tensor(logits), torch.tensor(validation.labels))
    assert course.history[-1]["log_loss"] == pytest.approx(float(expected), abs=1e-6)
    AcceleratorState._reset_state()


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize("labels", [(0, 1, 2), (1, 1, 1)])
def test_a_collapse_into_one_class_is_said(
    bert: str, tmp_path: Path, labels: tuple[int, ...]
) -> None:
    classifier = adapted(bert, Head())
    with torch.no_grad():
        classifier.model.get_parameter("classifier.bias")[1] = 1e4
    validation = Examples(tiny_examples(3).rows, labels)
    loop = loop_on(
        classifier, tmp_path, replace(EIGHT, epochs=1), validation=validation, learning_rate=1e-6
    )
    loop.reporter = listener = Listener()
    loop.run()
    # Rows of one class that are all given that class are no collapse.
    assert any("same class" in said for said in listener.said) == (len(set(labels)) > 1)


def test_a_collapsed_model_is_noted_though_nothing_was_validated(bert: str, tmp_path: Path) -> None:
    data, test = write_table(tmp_path / "train.csv"), write_table(tmp_path / "test.csv", 9, seed=1)
    result = train(
        bert,
        DataConfig(data, test, validation="none"),
        tmp_path / "run",
        method=Head(),
        # One step, after which the largest bias decides whatever the text.
        settings=TrainingSettings(epochs=1, batch_size=64, learning_rate=1e-9, warmup=0.0),
        head=HeadConfig("mean"),
    )
    assert len(set(np.argmax(predicted(result.folder), axis=1))) == 1
    assert "has collapsed" in result.metrics["notes"][0]


def test_full_training_of_a_pooled_head_names_the_unused_pooler(bert: str, tmp_path: Path) -> None:
    classifier = adapted(bert, Full(), head="mean")
    course = loop_on(classifier, tmp_path, EIGHT, learning_rate=1e-4).run()
    assert len(course.notes) == 1 and "encoder.pooler.dense.weight" in course.notes[0]


def test_divergence_stops_with_the_step(bert: str, tmp_path: Path) -> None:
    settings = replace(EIGHT, epochs=20, clip=None, warmup=0.0)
    with pytest.raises(DeltafitError, match=r"diverged at step \d+ of 60: .* Lower --lr"):
        loop_on(adapted(bert, Full()), tmp_path, settings, learning_rate=1e6).run()


def test_a_loss_far_above_the_start_stops_though_it_is_finite(bert: str, tmp_path: Path) -> None:
    settings = replace(EIGHT, epochs=20, warmup=0.0)
    with pytest.raises(
        DeltafitError, match=r"diverged at step \d+ of 60: the mean loss of the last"
    ):
        loop_on(adapted(bert, Full()), tmp_path, settings, learning_rate=10.0).run()


def test_logits_that_are_not_numbers_stop_an_evaluation_with_its_step(
    bert: str, tmp_path: Path
) -> None:
    validation = tiny_examples(4)
    loop = loop_on(adapted(bert), tmp_path, replace(EIGHT, evaluate_every=1), validation=validation)
    head = loop.classifier.model.get_parameter("classifier.weight")
    loop.optimiser.step = lambda: head.data.fill_(float("nan"))  # type: ignore[method-assign]
    with pytest.raises(DeltafitError, match="at step 1 of 6: the logits of a validation row"):
        loop.run()


def test_weights_that_are_not_numbers_stop_the_first_step(bert: str, tmp_path: Path) -> None:
    classifier = adapted(bert)
    with torch.no_grad():
        next(classifier.model.parameters())[:] = float("nan")
    with pytest.raises(DeltafitError, match="at step 1 of 6: the loss became nan"):
        loop_on(classifier, tmp_path, EIGHT).run()


def predicted(run: Path) -> np.ndarray:
    return read_tensors(run / "predictions.safetensors")["test/logits"].numpy()
