"""Every side of the speed benchmark, run for a few steps on a tiny model."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import many_adapters
import plain_loop
import predicting
import rivals
import sweep
import table
import worker
from deltafit.methods import LoRA
from tests.training.tiny_runs import save_model, write_table
from works import (
    ADAPTER_NAMES,
    BF16,
    FLOAT32,
    GROUPED,
    IN_TURN,
    LORALIB,
    OURS,
    PIPELINE,
    REDUCED,
    TRAINER,
    WITHOUT_DROPOUT,
    Work,
)

STEPS = 8


def work_on(folder: Path, method: str, *, steps: int = STEPS, batch_size: int = 4) -> Work:
    """A work on a tiny BERT and a tiny table; the data path is ``folder``."""
    model = save_model(folder / "model")
    (folder / "texts").mkdir()
    for seed, part in enumerate(("train", "test")):
        write_table(folder / "texts" / f"{part}.csv", 46, seed)
    return Work(model, "texts", method, batch_size, 16, steps, 6, 10, loralib=True)


def row_of(work: Work, runs: dict[str, dict[str, object]]) -> dict[str, str]:
    """The table's row of one pair."""
    machine = {"threads": 1, "processor": "Some CPU", "bf16_units": True, "versions": {}}
    pairs = {"a work": [{"machine": machine, "code": "c0de", **runs, "wall_seconds": 1.0}]}
    works = {"a work": work}
    assert table.markdown(works, pairs).count("| a work |") == 2
    (speed,), (beside,) = table.speeds(works, pairs), table.others(works, pairs)
    return dict(zip((*table.SPEED, *table.BESIDE), (*speed, *beside), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora:target_modules=query,value", "head"])
def test_every_side_trains_and_the_table_has_its_row(tmp_path: Path, method: str) -> None:
    work = work_on(tmp_path, method)
    sides = work.sides(bf16=True) if method != "head" else (OURS, TRAINER)
    runs = {}
    for side in sides:
        AcceleratorState._reset_state()  # a process keeps its first precision; here sides share one
        runs[side] = worker.run(work, side, tmp_path)
    for side, run in runs.items():
        assert len(run["losses"]) == STEPS, side
        assert all(0 < loss < 4 for loss in run["losses"]), side  # about ln 3: three labels
        assert run["seconds"] > 0 and 0 <= run["accuracy"] <= 1, side
        assert 3 * 2 * 4 <= run["tokens"] <= 3 * 9 * 4, side  # three steps of 4 texts of 2 to 9
        assert (run["roofline_seconds"] is not None) == (side in (OURS, FLOAT32, WITHOUT_DROPOUT))
        assert run["precision"] == ("bf16" if side == REDUCED else "float32")
        run["memory_above_floor"] = 1  # of many runs in one process only the first sees a peak
    row = row_of(work, runs)
    assert "×" in row["against the rival"] and "%" in row["roofline"]
    if method != "head":
        assert all("×" in row[f"against {who}"] for who in ("grouped", "bf16, grouped", "loralib"))
        assert {GROUPED, REDUCED, LORALIB, FLOAT32} < set(sides)
        assert row["in float32"] == "–"  # both are: it is too small for bf16 to pay


@pytest.mark.slow
def test_a_sweep_adds_up_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "METHODS", sweep.METHODS[:3])
    work = work_on(tmp_path, "sweep")
    runs = {side: worker.run(work, side, tmp_path) for side in (OURS, TRAINER, IN_TURN, FLOAT32)}
    for run in runs.values():
        assert len(run["losses"]) == STEPS and run["seconds"] > 0
        run["memory_above_floor"] = 1
    # Without dropout the joined runs are the single ones, up to rounding.
    assert runs[OURS]["losses"] == pytest.approx(runs[IN_TURN]["losses"], abs=1e-4)
    assert runs[OURS]["losses"] == runs[FLOAT32]["losses"]  # too small for bf16 to pay
    assert runs[OURS]["tokens"] == runs[IN_TURN]["tokens"]
    assert runs[OURS]["accuracy"] == runs[IN_TURN]["accuracy"]
    assert "×" in row_of(work, runs)["in turn"]


@pytest.mark.slow
def test_both_sides_predict_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another process is for measuring memory, and takes long to start.
    monkeypatch.setattr(predicting, "in_another_process", lambda function, *given: function(*given))
    work = work_on(tmp_path, "predict", steps=40)
    runs = {side: worker.run(work, side, tmp_path) for side in (OURS, PIPELINE, BF16)}
    assert [run["precision"] for run in runs.values()] == ["float32", "float32", "bf16"]
    assert runs[BF16]["accuracy"] == pytest.approx(runs[OURS]["accuracy"], abs=2 / 40)
    assert runs[OURS]["accuracy"] == runs[PIPELINE]["accuracy"]
    for run in runs.values():
        assert run["seconds"] > 0 and run["tokens"] == 40
        run["memory_above_floor"] = 1
    row = row_of(work, runs)
    assert row["last loss"] == "–" and row["against grouped"] == "–" and "%" in row["roofline"]


@pytest.mark.slow
@pytest.mark.parametrize("side", [OURS, ADAPTER_NAMES])
def test_every_row_has_the_logits_of_its_adapter(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        many_adapters, "in_another_process", lambda function, *given: function(*given)
    )
    work = work_on(tmp_path, "mixed", steps=3, batch_size=5)
    compared = []
    monkeypatch.setattr(many_adapters, "_check", lambda *given: compared.append(given))
    run = worker.run(work, side, tmp_path)
    assert run["seconds"] > 0 and run["accuracy"] is None
    ((found, expected, _),) = compared
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1:]).abs().max() > 0.1  # the adapters differ
    monkeypatch.undo()
    with pytest.raises(ValueError, match="other logits than each row alone"):
        many_adapters._check(found.roll(1, 0), expected, side)


def test_loralib_trains_the_adapter_and_the_head_alone(tmp_path: Path) -> None:
    _, network = rivals.load(save_model(tmp_path / "model"), 3)
    batch = {"input_ids": torch.arange(3, 9).view(2, 3)}
    before = network.eval()(**batch).logits
    weights = {n: p.clone() for n, p in network.named_parameters()}
    plain_loop.put_loralib(network, LoRA(target_modules=("query", "value")))
    torch.testing.assert_close(network.eval()(**batch).logits, before)  # B = 0
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    names = {f"{n}.lora_{m}" for n in _layers(weights, "query", "value") for m in "AB"}
    assert trained == names | {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(network.get_parameter(n), p) for n, p in weights.items())


def _layers(names: dict[str, torch.Tensor], *lasts: str) -> set[str]:
    owners = {name.rpartition(".")[0] for name in names}
    return {owner for owner in owners if owner.rpartition(".")[2] in lasts}
