"""``run``: its report is a comparison's, and each run is done once whatever happens to it."""

import csv
import errno
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import DeltafitError, DiskFullError, UsageError
from deltafit.experiments.comparison import compare
from deltafit.experiments.dry_run import dry_run
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.recipe import Entry
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.recipe_run import run
from deltafit.experiments.runs_table import COLUMNS
from deltafit.files import read_json
from deltafit.training.interruption import Interrupted
from tests.experiments.recipe_runs import Listening, same_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_images")]


def stamps(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.glob("runs/*/metrics.json")}


def test_rows_are_those_of_a_comparison(recipe: Path, done: Comparison, tmp_path: Path) -> None:
    read = read_recipe(recipe)
    compared = compare(
        read.model, read.data, tmp_path / "out",
        methods=["head", "lora:rank=2", "lora:rank=4"], seeds=[0, 1], settings=read.settings,
    )  # fmt: skip
    names = [row["name"] for row in compared.rows]
    assert [row["name"] for row in done.rows] == [*names[:-2], "r=2", "r=4"]
    for row, other in zip(done.rows, compared.rows, strict=True):
        for key in ("before", "after", "interval", "macro_f1", "difference", "trainable", "seeds"):
            assert row[key] == other[key], (row["name"], key)


def test_the_report_has_published_figures_beside_ours(done: Comparison) -> None:
    text = (done.folder / "report.md").read_text()
    page = (done.folder / "report.html").read_text()
    assert "Published figures" in page and "nobody, on nothing" in page
    head, small = (next(r for r in done.rows if r["name"] == n) for n in ("head", "r=2"))
    assert "Published: nobody, on nothing" in text and "Three rows on a tiny model." in text
    assert f"| head | 50.00 | {100 * head['after']:.2f} | 100 k | 99 | 2.00 |" in text
    assert f"| r=2 | 60.00 | {100 * small['after']:.2f} | – | 867 | – |" in text
    (kept,) = read_json(done.folder / "comparison.json")["sections"]["published"]
    beside = {
        (one["row"], one["figure"]): (one["published"], one["ours"]) for one in kept["figures"]
    }
    assert len(beside) == 6 and beside["head", "accuracy"] == (0.5, head["after"])
    assert beside["r=2", "minutes"] == (None, small["seconds"] / 60)
    assert "| r=4 |" not in text.partition("## Published")[2].partition("## Result")[0]


def test_every_run_is_a_line(done: Comparison) -> None:
    with (done.folder / "runs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [(line["name"], line["seed"]) for line in lines] == [
        (name, seed) for name in ("head", "r=2", "r=4") for seed in ("0", "1")
    ]
    store = done.folder.parent
    for line in lines:
        metrics = read_json(store / line["folder"] / "metrics.json")
        assert float(line["pre_test_acc"]) == metrics["before"]["test"]["accuracy"]
        assert float(line["final_val_acc"]) == metrics["after"]["validation"]["accuracy"]
        assert float(line["train_loss_last"]) == metrics["history"][-1]["train_loss"]
        assert float(line["val_loss_last"]) == metrics["history"][-1]["loss"]
        assert (line["examples_seen"], line["num_epochs"], line["lr"]) == ("72", "2", "0.01")
        assert line["pre_train_acc"] == line["final_train_acc"] == "", "nobody asked"
    assert [line["rank"] for line in lines] == ["", "", "2", "2", "4", "4"]
    assert [line["trainable_layers"] for line in lines] == ["last_layer"] * 2 + ["lora"] * 4


def test_training_rows_are_judged_where_that_is_asked_for(recipe: Path, tmp_path: Path) -> None:
    overrides = ["settings.judge_training=true", "seeds=[0]", "settings.epochs=1"]
    for jointly in (False, True):
        store = tmp_path / str(jointly)
        result = run(recipe, store, overrides=overrides, jointly=jointly)
        with (result.folder / "runs.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                metrics = read_json(store / line["folder"] / "metrics.json")
                assert float(line["pre_train_acc"]) == metrics["before"]["train"]["accuracy"]
                assert float(line["final_train_acc"]) == metrics["after"]["train"]["accuracy"]
                assert metrics["after"]["train"]["count"] == 36 and metrics["judged_on"] == "test"


def test_a_second_time_does_nothing(recipe: Path, done: Comparison) -> None:
    store = done.folder.parent
    before, listening = stamps(store), Listening()
    assert len(before) == 6
    again = run(recipe, store, reporter=listening)
    assert listening.said == [] and listening.steps == 0
    assert stamps(store) == before
    assert again.rows == done.rows and again.verdict == done.verdict


def test_only_what_is_new_is_done_by_whichever_recipe_asks(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    store = done.folder.parent
    before = stamps(store)
    overrides = ["runs.1.grid.rank=[1, 4]", "name=other", "seeds=[1]"]
    plan = dry_run(recipe, store, overrides=overrides)
    assert (plan.runs, plan.finished) == (3, 2)
    listening = Listening()
    run(recipe, store, overrides=overrides, reporter=listening)
    assert listening.begun == ["lora:rank=1, seed 1 (run 2 of 3)"]
    assert stamps(store).items() >= before.items() and len(stamps(store)) == 7
    # Another model, that there is a twin for, has runs and a report of its own.
    assert (store / "other" / "report.md").is_file() and (store / "tiny" / "report.md").is_file()


def test_jointly_is_the_same(recipe: Path, done: Comparison, tmp_path: Path) -> None:
    listening = Listening()
    joint = run(
        recipe, tmp_path / "store", overrides=["settings.base_dropout=off"],
        jointly=True, reporter=listening,
    )  # fmt: skip
    single = run(recipe, tmp_path / "single", overrides=["settings.base_dropout=off"])
    assert sum(sentence.startswith("jointly: ") for sentence in listening.said) == 1
    for one, other in zip(joint.rows, single.rows, strict=True):
        assert one["after"] == pytest.approx(other["after"]) and one["name"] == other["name"]
    with pytest.raises(UsageError, match="finds nothing to train jointly"):
        run(recipe, tmp_path / "store", overrides=["runs=[{method: head}]"], jointly=True)


def test_a_run_that_diverges_is_not_tried_again(recipe: Path, tmp_path: Path) -> None:
    overrides = ["runs=[{method: head}, {method: full, settings: {learning_rate: 1e30}}]"]
    first, second = Listening(), Listening()
    result = run(recipe, tmp_path, overrides=overrides, reporter=first)
    again = run(recipe, tmp_path, overrides=overrides, reporter=second)
    assert "diverged" in result.rows[-1]["failure"]
    assert again.rows[-1]["failure"] == result.rows[-1]["failure"]
    assert len(first.begun) == 4 and second.begun == []
    with (result.folder / "runs.csv").open(newline="") as file:
        assert ["diverged" in line["failure"] for line in csv.DictReader(file)] == [
            False, False, True, True,
        ]  # fmt: skip


def test_ctrl_c_at_any_step_and_the_same_call_again(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    chosen = random.Random(0)
    for _ in range(60):
        try:
            result = run(recipe, tmp_path, reporter=Listening(chosen.randint(1, 14)))
            break
        except Interrupted:
            continue
    same_rows(result, done)


def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    flush, room = os.fsync, 6

    def full(handle: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    for _ in range(40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deltafit.files.os.fsync", full)
            try:
                result = run(recipe, tmp_path)
                break
            except DiskFullError as error:
                assert "is full; free some space" in str(error)
                assert ".part" not in str(error)
        room = 25
    same_rows(result, done)


def test_damage_is_a_sentence(recipe: Path, tmp_path: Path) -> None:
    overrides = ["runs=[{method: head}]", "seeds=[0]", "settings.epochs=1"]
    run(recipe, tmp_path, overrides=overrides)
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "predictions.safetensors").write_bytes(b"x")
    with pytest.raises(DeltafitError, match=r"predictions.safetensors is damaged or cut short"):
        run(recipe, tmp_path, overrides=overrides)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(DeltafitError, match=rf"not valid JSON.* Delete {folder}, and it is"):
        run(recipe, tmp_path, overrides=overrides)


def test_a_dry_run_foretells_and_writes_nothing(
    recipe: Path, done: Comparison, tmp_path: Path
) -> None:
    plan = dry_run(recipe, tmp_path / "store")
    assert (plan.runs, plan.finished, plan.problem) == (6, 0, None)
    assert not (tmp_path / "store").exists()
    sizes = [sum((arm.memory or {}).values()) for arm in plan.arms]
    assert sizes[0] > 0 and sizes[1] < sizes[2], "a larger rank takes more"
    for arm in plan.arms:
        assert arm.roughly and arm.seconds is not None and arm.seconds > 0, "no run tells it yet"

    # One seed is finished: it tells what the other takes.
    store = tmp_path / "one"
    run(recipe, store, overrides=["seeds=[0]"])
    plan = dry_run(recipe, store)
    assert [(arm.runs, arm.finished) for arm in plan.arms] == [(2, 1)] * 3
    for arm in plan.arms:
        paths = (path for path in store.glob("runs/*/metrics.json"))
        taken = [read_json(path)["costs"]["training_seconds"] for path in paths]
        assert arm.seconds in taken and not arm.roughly


def test_a_model_that_is_not_here_is_planned_as_far_as_can_be(recipe: Path, tmp_path: Path) -> None:
    plan = dry_run(recipe, tmp_path, overrides=["model=nobody/has-this"])
    assert plan.runs == 6 and plan.problem is not None and "nobody/has-this" in plan.problem
    assert all(arm.memory is None for arm in plan.arms)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["runs.1.method=lora:target_modules=qery"], "'qery' matches no module"),
        (["data.test_data=null", "data.validation=none"], "nothing to judge on"),
        (["data=none.csv"], "no data at 'none.csv'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(DeltafitError, match=sentence):
        run(recipe, tmp_path / "store", overrides=overrides)
    assert not (tmp_path / "store").exists()


def test_processes_launched_together_start_no_others(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        num_processes = 2

    monkeypatch.setattr("deltafit.experiments.workers.launched", Two)
    with pytest.raises(UsageError, match="2 processes were launched together"):
        run(recipe, tmp_path / "store", processes=2)


def test_a_recipe_of_ones_own(recipe: Path, tmp_path: Path) -> None:
    read: Any = replace(
        read_recipe(recipe), runs=(Entry("head"),), seeds=(0,), published=None, name="mine"
    )
    assert [row["name"] for row in run(read, tmp_path).rows][3:] == ["head"]
    with pytest.raises(UsageError, match="Changes are for recipes in files"):
        run(read, tmp_path, overrides=["seeds=[1]"])
