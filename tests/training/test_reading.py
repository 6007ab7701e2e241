"""Training with the last block for first tokens alone learns what it learns without."""

from pathlib import Path

import pytest
import torch

from deltafit.methods import Full, LastBlocks, LoRA, Method
from deltafit.training import execution
from deltafit.training.settings import TrainingSettings
from tests.training.test_resume import assert_same_run, go, interrupted
from tests.training.tiny_runs import (
    adapted,
    loop_on,
    save_model,
    tiny_examples,
    trained_values,
    write_table,
)

STEPS = TrainingSettings(epochs=4, batch_size=5)  # five an epoch


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA("all-linear", rank=2), LastBlocks(1), Full()], ids=str)
@pytest.mark.parametrize("head", ["architecture", "cls"])
def test_twenty_steps_come_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, method: Method
) -> None:
    model = save_model(tmp_path / "model")
    results = []
    for reads in (True, False):
        if not reads:
            monkeypatch.setattr(execution, "find_reading", lambda model, batch: None)
        classifier = adapted(model, method, head=head)
        # Plain descent: Adam would make whole steps of rounding where a gradient should be zero.
        loop = loop_on(classifier, tmp_path / str(reads), STEPS, validation=tiny_examples(6, 3))
        group = {"params": list(loop.trainable.values()), "initial_lr": 0.2}
        loop.optimiser.optimizer = torch.optim.SGD([group], lr=0.2)
        before = trained_values(classifier)
        loop.run()
        assert loop.course.step == 20 and loop.course.packed
        assert loop.course.first_tokens is reads
        results.append(trained_values(classifier))
        moved = max(float((results[-1][n] - before[n]).abs().max()) for n in before)
        assert moved > 1e-2
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-5, msg=name)


def test_a_head_that_reads_all_tokens_has_them_all(tmp_path: Path) -> None:
    classifier = adapted(save_model(tmp_path / "model"), head="mean")
    loop = loop_on(classifier, tmp_path, TrainingSettings(epochs=1, batch_size=5))
    loop.run()
    assert loop.course.packed and loop.course.first_tokens is False


@pytest.mark.slow
@pytest.mark.parametrize("reads", [True, False])
def test_a_resumed_run_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    model = save_model(tmp_path / "model", dropout=True)
    inputs = model, write_table(tmp_path / "texts.csv", 45)
    if not reads:
        monkeypatch.setattr(execution, "find_reading", lambda model, batch: None)
    undisturbed = go(inputs, tmp_path / "undisturbed")
    run = interrupted(inputs, tmp_path / "run")
    monkeypatch.setattr(execution, "find_reading", lambda *_: pytest.fail("decided again"))
    assert_same_run(go(inputs, run, resume=True), undisturbed)
