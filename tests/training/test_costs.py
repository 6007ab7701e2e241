"""Memory measured and foretold, and the other costs of a run."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from deltafit.methods import Full, Head, LoRA, Method
from deltafit.training.config import RunConfig
from deltafit.training.costs import expected_memory
from deltafit.training.memory import measured_memory
from deltafit.training.settings import DataConfig, TrainingSettings
from tests.training.tiny_runs import adapted, save_model, tiny_examples

MB = 1 << 20


@pytest.mark.parametrize("resettable", [True, False])
def test_measured_memory_sees_what_was_freed_again(
    monkeypatch: pytest.MonkeyPatch, resettable: bool
) -> None:
    if not resettable:
        monkeypatch.setattr("deltafit.training.memory._reset_kernel_peak", lambda: False)
    before = psutil.Process().memory_info().rss
    with measured_memory() as peak:
        block = np.ones(200 * MB, dtype=np.uint8)
        if not resettable:  # sampling needs a moment to look
            for _ in range(20):
                block += 1
        del block
    assert 195 * MB < peak.process - before < 320 * MB
    assert peak.gpu == 0

    with measured_memory() as later:  # the peak is of its own block
        pass
    assert later.process < peak.process - 100 * MB


@pytest.mark.parametrize("method", [Head(), LoRA(rank=2), Full()])
def test_expected_memory_by_part(tmp_path: Path, method: Method) -> None:
    classifier = adapted(save_model(tmp_path), method)
    config = RunConfig("m", DataConfig("d"), method, settings=TrainingSettings(batch_size=4))
    rows = tiny_examples().rows
    parts = expected_memory(classifier, config, rows)
    assert set(parts) == {"process_before", "gradients", "optimiser", "activations"}
    trained = sum(p.numel() for p in classifier.model.parameters() if p.requires_grad)
    assert parts["gradients"] == 4 * trained and parts["optimiser"] == 8 * trained
    assert all(isinstance(value, int) and value > 0 for value in parts.values())
    larger = RunConfig("m", DataConfig("d"), method, settings=TrainingSettings(batch_size=8))
    assert expected_memory(classifier, larger, rows)["activations"] > parts["activations"]
