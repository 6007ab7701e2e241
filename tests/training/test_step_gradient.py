"""The gradient of a step is that of the mean loss of its rows, however they are packed or cut."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from deltafit.engine import packed
from deltafit.methods import LoRA
from deltafit.tasks.classification import Classifier, batch_of, logits_of
from deltafit.training import passes
from deltafit.training.course import Examples
from tests.training.test_loop import EIGHT, Values
from tests.training.tiny_runs import adapted, loop_on, save_model, tiny_examples

# In one pass, in a few, and each row by itself.
BUDGETS = (2048, 30, 1)
STEP = list(range(22))
HEADS = {"bert": "architecture", "llama": "architecture", "t5": "mean"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_model(folder / name, name) for name in HEADS}


def gradients(classifier: Classifier) -> Values:
    """The gradients that the parameters hold, taken off them."""
    named = dict(classifier.model.named_parameters())
    found = {name: p.grad for name, p in named.items() if p.grad is not None}
    classifier.model.zero_grad()
    return found


def row_by_row(classifier: Classifier, examples: Examples, rows: list[int]) -> tuple[Values, float]:
    """What plain torch gives of the mean of the rows' own losses, each row alone and unpadded."""
    total = 0.0
    for row in rows:
        logits = logits_of(classifier.model, batch_of(classifier, [examples.rows[row]]))
        loss = functional.cross_entropy(logits, torch.tensor([examples.labels[row]])) / len(rows)
        loss.backward()
        total += float(loss.detach())
    return gradients(classifier), total


@pytest.mark.parametrize("rows", [STEP, [7]], ids=["a step", "one row"])
@pytest.mark.parametrize("run_packed", [True, False])
@pytest.mark.parametrize("architecture", HEADS)
def test_a_step_is_the_mean_of_its_rows(
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    run_packed: bool,
    rows: list[int],
) -> None:
    classifier, examples = (
        adapted(models[architecture], LoRA("all-linear", rank=2), head=HEADS[architecture]),
        tiny_examples(),
    )
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name or name == "classifier.weight":  # at zero they would hide others'
            torch.nn.init.normal_(parameter, std=0.1)
    expected, mean = row_by_row(classifier, examples, rows)
    assert any("lora_A" in name for name in expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    calls: list[int] = []
    classifier.model.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for budget in BUDGETS:
        monkeypatch.setattr(passes, "_MOST_PACKED_TOKENS", budget)
        # Padded passes are cut by rows.
        settings = replace(EIGHT, batch_size=len(STEP) if run_packed else min(budget, len(STEP)))
        loop = loop_on(classifier, tmp_path, settings)
        loop.gradients.packed = run_packed
        calls.clear()
        with packed(classifier.model) if run_packed else nullcontext():
            loss = loop.gradients.accumulate(rows)
        counts.append(len(calls))
        assert loss == pytest.approx(mean, abs=1e-5)
        found = gradients(classifier)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[name], gradient, rtol=0, atol=1e-5 * max(1.0, largest), msg=name
            )
    if rows == STEP:
        assert counts[0] <= counts[1] < counts[2] == len(STEP)
    else:
        assert counts == [1, 1, 1]
