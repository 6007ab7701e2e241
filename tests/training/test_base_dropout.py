"""Where the base model's dropout is on while a method trains, as docs/methods.md says."""

from functools import partial
from pathlib import Path

import pytest
from torch import nn

from deltafit.methods import METHODS, Method, parse_method
from deltafit.training.settings import TrainingSettings
from tests.training.tiny_runs import adapted, loop_on, save_model

EVERYWHERE = {"embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2"}
# All that drops; of the others nothing lies below the lowest trained layer.
ABOVE_A_PREFIX = {
    "head": set(),
    "last-block": {"encoder.layer.2"},
    "last-block:count=2": {"encoder.layer.1", "encoder.layer.2"},
    "freeze-first": {"encoder.layer.1", "encoder.layer.2"},
    "modules:pattern=layer.1.attention": {"encoder.layer.1", "encoder.layer.2"},
    "lora:rank=2,layers=-1": {"encoder.layer.2"},
}
WHOLE = ("modules:pattern=attention", *(METHODS.keys() - {*ABOVE_A_PREFIX, "modules"}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"), dropout=True)


def dropping(bert: str, folder: Path, method: Method, settings: TrainingSettings) -> set[str]:
    """The parts of a BERT whose dropout ran in training mode."""
    classifier, found = adapted(bert, method), set[str]()

    def note(part: str, module: nn.Module, args: object, output: object) -> None:
        if module.training:
            found.add(part)

    for part in EVERYWHERE:
        for module in classifier.model.get_submodule(f"bert.{part}").modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(partial(note, part))
    loop_on(classifier, folder, settings).run()
    return found


@pytest.mark.parametrize("text", [*ABOVE_A_PREFIX, *sorted(WHOLE)])
def test_it_is_on_from_the_lowest_trained_block_upward(
    bert: str, tmp_path: Path, text: str
) -> None:
    settings = TrainingSettings(epochs=1, batch_size=11)
    expected = ABOVE_A_PREFIX.get(text, EVERYWHERE)
    assert dropping(bert, tmp_path, parse_method(text), settings) == expected


@pytest.mark.parametrize("text", ["head", "last-block", "lora:rank=2", "full"])
def test_off_it_is_on_nowhere(bert: str, tmp_path: Path, text: str) -> None:
    settings = TrainingSettings(epochs=1, batch_size=11, base_dropout="off")
    assert dropping(bert, tmp_path, parse_method(text), settings) == set()
