"""Whether training runs packed: as it is asked to, and only where the check passes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from deltafit.errors import UsageError
from deltafit.training import execution
from deltafit.training.course import Course, Examples
from deltafit.training.execution import wants_packing
from deltafit.training.settings import Packing, TrainingSettings
from tests.engine.ragged import shapes_in_blocks
from tests.engine.test_checking import mix_rows, spoilt
from tests.training.test_loop import EIGHT, assert_same
from tests.training.test_precision import Listener
from tests.training.tiny_runs import adapted, loop_on, save_model, trained_values


def run(
    folder: Path,
    packing: Packing,
    *,
    architecture: str = "bert",
    accelerator: Accelerator | None = None,
) -> tuple[Course, list[tuple[int, int]], list[str]]:
    """Train; return where the run stands, the shapes in the blocks, and what was said."""
    classifier = adapted(save_model(folder / "model", architecture))
    settings = replace(EIGHT, packing=packing, epochs=1)
    loop = loop_on(classifier, folder / "run", settings, accelerator=accelerator)
    loop.reporter = reporter = Listener()
    with shapes_in_blocks(classifier.model) as shapes:
        course = loop.run()
    return course, shapes, reporter.said


@pytest.mark.parametrize(("packing", "packs"), [("auto", True), ("on", True), ("off", False)])
def test_training_packs_as_asked(packing: Packing, packs: bool, tmp_path: Path) -> None:
    course, shapes, said = run(tmp_path, packing)
    assert course.packed is packs and not said
    # The last shapes are those of a training step: a sheet, or rows of texts.
    assert all((rows == 1) == packs for rows, _ in shapes[-2:])


def test_where_the_check_fails_it_runs_padded_and_says_so(tmp_path: Path) -> None:
    course, _, said = run(tmp_path, "on", architecture="mpnet")
    assert course.packed is False
    (sentence,) = said
    assert "cannot run packed" in sentence and sentence.endswith("padded, which is slower.")


@pytest.mark.parametrize("packing", ["auto", "off", "on"])
def test_on_another_device_it_packs_where_that_is_asked_for(packing: Packing) -> None:
    model = nn.Linear(2, 2, device="meta")
    assert wants_packing(model, packing) is (packing == "on")
    assert wants_packing(nn.Linear(2, 2), packing) is (packing != "off")


@pytest.mark.parametrize(("precision", "dtype"), [("no", None), ("bf16", torch.bfloat16)])
def test_the_check_runs_in_the_mixed_precision_of_the_run(
    precision: str, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    check = execution.check_packing

    def noted(*arguments: object, mixed: torch.dtype | None) -> str | None:
        asked.append(mixed)
        return check(*arguments, mixed=mixed)

    monkeypatch.setattr(execution, "check_packing", noted)
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    course, _, said = run(tmp_path, "auto", accelerator=accelerator)
    AcceleratorState._reset_state()
    assert asked == [dtype] and course.packed and not said


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match="packing must be one of auto, on, off; got 'yes'"):
        TrainingSettings(packing="yes")


def test_a_model_that_gives_something_else_packed_trains_padded_and_says_so(
    tmp_path: Path,
) -> None:
    model, ends, said = save_model(tmp_path / "model"), [], []
    for packing in ("auto", "off"):
        classifier = adapted(model)
        # Along a row of a padded batch, and along a sheet of many rows.
        spoilt(classifier.model, mix_rows)
        settings = replace(EIGHT, packing=packing, epochs=1)
        loop = loop_on(classifier, tmp_path / packing, settings)
        loop.reporter = reporter = Listener()
        course = loop.run()
        assert course.packed is False
        ends.append(trained_values(classifier))
        said.append(reporter.said)
    ((sentence,), nothing) = said
    assert "BertModel does not give the same packed as padded: the states" in sentence
    assert sentence.endswith("It runs padded, which is slower.") and not nothing
    assert_same(*ends)


def test_what_runs_padded_runs_in_passes_of_like_length(tmp_path: Path) -> None:
    classifier = adapted(save_model(tmp_path / "model", "mpnet"))
    lengths = [3, 30, 4, 3, 29, 4, 3, 3]
    rows = Examples([[5 + place] * length for place, length in enumerate(lengths)], [0, 1] * 4)
    loop = loop_on(classifier, tmp_path / "run", replace(EIGHT, epochs=1), train=rows)
    loop.reporter = Listener()
    with shapes_in_blocks(classifier.model) as shapes:
        loop.run()
    assert loop.course.step == 1  # in one step of the optimiser
    assert shapes[-2:] == [(2, 30), (6, 4)]
