"""A run keeps its adapter only if a fresh load of it is the model that was trained."""

import gc
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from deltafit.errors import DeltafitError
from deltafit.methods import Full, LoRA, Method
from deltafit.prediction.folder import load_saved, prove_saved
from deltafit.training.progress import Silent
from deltafit.training.settings import TrainingSettings
from deltafit.training.train import train
from tests.prediction.test_folder import CANARIES, saved
from tests.training.tiny_runs import save_model, write_table

SETTINGS = TrainingSettings(epochs=1, batch_size=8, max_length=12)


def test_what_comes_back_otherwise_is_not_kept(tmp_path: Path) -> None:
    saved(tmp_path)
    prove_saved(tmp_path / "adapter")
    canaries = tmp_path / "adapter" / CANARIES
    canaries.write_bytes(canaries.read_bytes()[:-4])
    with pytest.raises(DeltafitError, match=r"was not kept\. .*canaries\.safetensors is damaged"):
        prove_saved(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def models() -> list[object]:
    return [o for o in gc.get_objects() if type(o) is BertForSequenceClassification]


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA(rank=2), Full()])
def test_the_proof_holds_one_model_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    proven: list[Path] = []
    of_other_tests = models()

    def prove(folder: Path) -> None:
        assert len(models()) <= len(of_other_tests)
        assert not (folder.parent / "metrics.json").exists()  # so the run is not finished yet
        prove_saved(folder)
        proven.append(folder)

    monkeypatch.setattr("deltafit.training.run.prove_saved", prove)
    model, table = save_model(tmp_path / "model"), write_table(tmp_path / "table.csv")
    train(model, table, tmp_path / "run", method=method, settings=SETTINGS)
    assert proven == [tmp_path / "run" / "adapter"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["costs"]


@pytest.mark.slow
def test_a_base_that_changes_while_training_fails_the_run(tmp_path: Path) -> None:
    weights = Path(save_model(tmp_path / "model")) / "model.safetensors"
    original, run = weights.read_bytes(), tmp_path / "run"
    table = write_table(tmp_path / "table.csv")

    class Replacing(Silent):
        def start(self, what: str, total: int, done: int) -> None:
            if what == "evaluation after training":
                tensors = {n: t + 0.01 for n, t in load_file(weights).items()}
                save_file(tensors, weights, metadata={"format": "pt"})

    with pytest.raises(DeltafitError, match=r"was not kept\. .*made on another base"):
        train(weights.parent, table, run, settings=SETTINGS, reporter=Replacing())
    assert not (run / "adapter").exists() and not (run / "metrics.json").exists()
    with pytest.raises(DeltafitError, match="has not finished"):
        load_saved(run)
    weights.write_bytes(original)
    train(weights.parent, table, run, settings=SETTINGS, resume=True)
    assert load_saved(run).canary_difference == 0
