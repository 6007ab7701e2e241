"""Tensors that are not being trained are found, and those that rightly wait are let be."""

from pathlib import Path

import pytest
import torch
from torch import nn

from deltafit.adapters import adapt
from deltafit.data import resolve_model
from deltafit.errors import DeltafitError
from deltafit.methods import Full, LoRA
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier
from deltafit.training.course import Examples
from deltafit.training.settings import TrainingSettings
from deltafit.training.watchdog import WATCHED_STEPS, GradientWatchdog
from tests.tiny_models import ARCHITECTURES
from tests.training.tiny_runs import LABELS, adapted, loop_on, save_model

SETTINGS = TrainingSettings(epochs=2, batch_size=4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"))


class Gated(nn.Module):
    """A block with a part of its own behind a factor of zero."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.behind = block, nn.Linear(32, 32)

    def forward(self, state: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        output: torch.Tensor = self.block(state, *rest, **named)
        return output + 0.0 * self.behind(state)


def gated(bert: str) -> Classifier:
    classifier = load_classifier(resolve_model(bert), LABELS, HeadSettings("mean"), seed=0)
    layers = classifier.model.get_submodule("encoder.encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    layers[0] = Gated(layers[0])
    adapt(
        classifier.model,
        LoRA(("query", "behind"), rank=2),
        head=classifier.head_parameters,
    )
    return classifier


def test_texts_of_one_token_teach_it_nothing(bert: str, tmp_path: Path) -> None:
    # Attention over a single token is 1, whatever query and key are.
    words = Examples([[5], [6], [7], [8]], [0, 1, 2, 0])
    loop = loop_on(adapted(bert), tmp_path, SETTINGS, train=words)
    loop.run()
    assert loop.watchdog.watching and not loop.course.notes


def test_a_gradient_that_is_always_zero_stops_the_third_step(bert: str, tmp_path: Path) -> None:
    loop = loop_on(gated(bert), tmp_path, SETTINGS)
    sentence = r"after 3 steps: the gradient of 2 of \d+ .*layer\.0\.behind\.lora_A"
    with pytest.raises(DeltafitError, match=sentence):
        loop.run()
    assert loop.course.step == WATCHED_STEPS - 1  # the third was not applied


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        *((architecture, "architecture") for architecture in ARCHITECTURES),
        *(("bert", "cls"), ("deberta-v2", "mean"), ("llama", "last")),
    ],
)
def test_lora_and_new_heads_pass(tmp_path: Path, architecture: str, head: str) -> None:
    classifier = adapted(save_model(tmp_path, architecture), LoRA(rank=2), head=head)
    course = loop_on(classifier, tmp_path, SETTINGS).run()
    if head == "architecture":
        assert not course.notes


def test_full_training_passes_from_a_head_of_zeros(bert: str, tmp_path: Path) -> None:
    course = loop_on(adapted(bert, Full(), head="cls"), tmp_path, SETTINGS).run()
    assert len(course.notes) == 1 and "2 tensors take no part" in course.notes[0]


def test_an_embedding_passes(bert: str, tmp_path: Path) -> None:
    method = LoRA(("word_embeddings", "query"), rank=2)
    assert not loop_on(adapted(bert, method), tmp_path, SETTINGS).run().notes


def test_reentrant_checkpointing_over_a_frozen_base_is_caught(bert: str, tmp_path: Path) -> None:
    # PEFT#1142: the head trains, the adapter never does, and nothing says so.
    classifier = adapted(bert)
    loop = loop_on(classifier, tmp_path, SETTINGS)
    model = classifier.model
    with pytest.warns(FutureWarning):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.disable_input_require_grads()
    with (
        pytest.warns(UserWarning, match="None of the inputs"),
        pytest.raises(DeltafitError, match=r"lora_A.*gradient checkpointing over frozen inputs"),
    ):
        loop.run()


def test_only_steps_in_a_row_of_zeros_count_and_state_survives() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in ("early", "late", "outside")}
    watchdog = GradientWatchdog(tuple(parameters))
    for step in range(WATCHED_STEPS):
        for name, first in (("early", 0), ("late", 2)):
            parameters[name].grad = torch.full((2,), float(step >= first))
        assert watchdog.watching
        watchdog.look(parameters)
        state = watchdog.state()
        watchdog = GradientWatchdog(tuple(parameters))
        watchdog.restore(state)
    assert not watchdog.watching and watchdog.outside == ("outside",)


def test_nothing_in_the_graph_is_refused() -> None:
    parameters = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2))}
    watchdog = GradientWatchdog(tuple(parameters))
    watchdog.look(parameters)
    watchdog.look(parameters)
    with pytest.raises(DeltafitError, match="2 of 2 trained tensors"):
        watchdog.look(parameters)
