"""A recipe with a search: what is chosen, by which rows, and that each trial is done once."""

import csv
from pathlib import Path
from typing import Any

import pytest

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.dry_run import dry_run
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.recipe_run import run
from deltafit.experiments.recipe_start import prepared
from deltafit.experiments.tuning import is_anything_left
from deltafit.files import read_json
from deltafit.training.interruption import Interrupted
from tests.experiments.recipe_runs import Listening, killed_at_random, same_rows
from tests.experiments.recipes import tiny_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_images")]

SEARCH = """\
search:
  trials: 5
  pruning: successive-halving
  space:
    learning_rate: {low: 1e-4, high: 1e-1}
    rank: [2, 4]
"""
TIMES = ("minutes",)
RATES = "search.space={learning_rate: {low: 1e-4, high: 1e-1}}"


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head and LoRA, each with a search of its own, and two seeds."""
    path = tiny_recipe(tmp_path_factory.mktemp("recipe"))
    text = path.read_text()
    runs = "runs:\n  - method: head\n  - method: lora\n"
    path.write_text(text[: text.index("runs:")].replace("epochs: 2", "epochs: 4") + runs + SEARCH)
    return path


@pytest.fixture(scope="module")
def found(
    searching: Path, no_images: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Comparison, Listening]:
    listening = Listening()
    store = tmp_path_factory.mktemp("found") / "store"
    return run(searching, store, reporter=listening), listening


def trials_of(result: Comparison) -> list[dict[str, str]]:
    with (result.folder / "trials.csv").open(newline="") as file:
        return [{k: v for k, v in line.items() if k not in TIMES} for line in csv.DictReader(file)]


def same(one: Comparison, other: Comparison) -> None:
    same_rows(one, other)
    assert trials_of(one) == trials_of(other)


def test_each_row_has_what_its_own_trials_found_best(
    found: tuple[Comparison, Listening],
) -> None:
    result, _ = found
    lines = trials_of(result)
    store = result.folder.parent
    for name in ("head", "lora"):
        tried = [line for line in lines if line["row"] == name]
        assert len(tried) == 5
        finished = [line for line in tried if line["state"] == "finished"]
        (chosen,) = (line for line in tried if line["chosen"] == "true")
        # By the validation figures that the runs themselves report, and by nothing else.
        best = max(
            finished,
            key=lambda line: (
                (after := read_json(store / line["folder"] / "metrics.json")["after"])["validation"]
            ["accuracy"], -after["validation"]["log_loss"]),
        )  # fmt: skip
        assert chosen == best
        (row,) = (row for row in result.rows if row["name"] == name)
        assert f"{row['learning_rate']:g}" == chosen["learning_rate"]
        assert (row["trials"], row["searched"][0]) == (5, "learning_rate")
        assert f"learning_rate={chosen['learning_rate']}" in row["notes"][0]
        assert "best of 5 trials by validation accuracy" in row["notes"][0]
        assert row["seeds"] == 2
    ranks = {line["rank"] for line in lines if line["row"] == "lora"}
    assert ranks <= {"2", "4"} and {line["rank"] for line in lines if line["row"] == "head"} == {""}
    with (result.folder / "runs.csv").open(newline="") as file:
        runs = [*csv.DictReader(file)]
    chosen_folders = {line["folder"] for line in lines if line["chosen"] == "true"}
    assert {line["folder"] for line in runs if line["seed"] == "0"} == chosen_folders


def test_the_report_says_that_rates_are_each_methods_own(
    found: tuple[Comparison, Listening],
) -> None:
    result, _ = found
    for name in ("report.md", "report.html"):
        text = (result.folder / name).read_text()
        assert "How the settings were chosen" in text
        assert "The rows that judge this report had no part in it." in text
        assert "Every row was trained at a learning rate of its own, the best of 5" in text
    facts = read_json(result.folder / "comparison.json")["facts"]["search"]
    assert facts["trials"] == 5 and facts["space"]["head"].startswith("learning_rate 0.0001 to")


def test_pruned_trials_are_left_where_they_were_pruned(
    found: tuple[Comparison, Listening],
) -> None:
    result, listening = found
    pruned = [line for line in trials_of(result) if line["state"] == "pruned"]
    assert pruned
    for line in pruned:
        folder = result.folder.parent / line["folder"]
        assert not (folder / "metrics.json").exists()
        assert line["epochs"] in ("1", "2") and len(line["evaluations"].split()) < 4
    # 36 training rows: 5 steps an epoch. Another seed of each row, and trials as far as they went.
    epochs = sum(float(line["epochs"]) for line in trials_of(result)) + 2 * 4
    assert listening.steps == 5 * epochs < 5 * 4 * 12


def test_a_second_time_does_nothing_and_a_plan_knows_it(
    searching: Path, found: tuple[Comparison, Listening], tmp_path: Path
) -> None:
    result, _ = found
    listening = Listening()
    same(run(searching, result.folder.parent, reporter=listening), result)
    assert listening.steps == 0 and listening.begun == []
    plan = dry_run(searching, result.folder.parent)
    assert (plan.runs, plan.finished) == (12, 12)
    plan = dry_run(searching, tmp_path / "none")
    assert (plan.runs, plan.finished) == (12, 0) and not (tmp_path / "none").exists()
    assert [arm.space for arm in plan.arms] == [
        "learning_rate 0.0001 to 0.1 in equal factors",
        "learning_rate 0.0001 to 0.1 in equal factors; rank 2 or 4",
    ]


def test_a_row_that_is_not_searched_is_seen_to_be_left(searching: Path, tmp_path: Path) -> None:
    changes = ["seeds=[0]", "settings.epochs=1", "search={trials: 2, space: {rank: [2, 4]}}"]
    one = [*changes, "runs=[{method: lora}]"]
    two = [*changes, "runs=[{method: lora}, {method: head}]"]
    assert is_anything_left(prepared(searching, tmp_path, one))
    run(searching, tmp_path, overrides=one)
    assert not is_anything_left(prepared(searching, tmp_path, one))
    assert is_anything_left(prepared(searching, tmp_path, two))
    listening = Listening()
    run(searching, tmp_path, overrides=two, reporter=listening)
    assert any("`deltafit doctor`" in sentence for sentence in listening.said), "it was asked"
    assert not is_anything_left(prepared(searching, tmp_path, two))
    assert is_anything_left(prepared(searching, tmp_path, [*two, "seeds=[0, 1]"]))


def test_more_trials_begin_with_those_that_were_done(searching: Path, tmp_path: Path) -> None:
    overrides = ["runs=[{method: head}]", "seeds=[0]", "search.pruning=none", RATES]
    few = trials_of(run(searching, tmp_path, overrides=[*overrides, "search.trials=2"]))
    listening = Listening()
    more = run(searching, tmp_path, overrides=[*overrides, "search.trials=3"], reporter=listening)
    without = [{k: v for k, v in line.items() if k != "chosen"} for line in trials_of(more)]
    for line, other in zip(few, without[:2], strict=True):
        assert {k: v for k, v in line.items() if k != "chosen"} == other
    assert sum("trial " in sentence for sentence in listening.said) == 1


def test_ctrl_c_at_any_step_and_the_same_call_again(
    searching: Path, found: tuple[Comparison, Listening], tmp_path: Path
) -> None:
    for at in (1, 6, 9, 14, 3, 21, 17, 11, 25):
        with pytest.raises(Interrupted):
            run(searching, tmp_path, reporter=Listening(at))
    same(run(searching, tmp_path), found[0])


def test_killed_at_random_it_finds_the_same(
    searching: Path, found: tuple[Comparison, Listening], tmp_path: Path
) -> None:
    killed_at_random(searching, tmp_path / "store", seed=2)
    same(run(searching, tmp_path / "store"), found[0])


def test_rows_are_searched_in_two_processes(
    searching: Path, found: tuple[Comparison, Listening], tmp_path: Path
) -> None:
    listening = Listening()
    same(run(searching, tmp_path, processes=2, reporter=listening), found[0])
    assert listening.steps == 0, "the processes did it all"


def test_test_rows_have_no_part_in_the_choice(
    searching: Path, found: tuple[Comparison, Listening], tmp_path: Path
) -> None:
    test = Path(str(searching.parent / "test.csv")).read_text().splitlines()
    labels = [line.rpartition(",")[2] for line in test[1:]]
    turned = {label: labels[index - 1] for index, label in enumerate(dict.fromkeys(labels))}
    lines = [f"{line.rpartition(',')[0]},{turned[label]}" for line, label in
             zip(test[1:], labels, strict=True)]  # fmt: skip
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join([test[0], *lines]))
    other = run(searching, tmp_path / "store", overrides=[f"data.test_data={wrong}"])
    one, two = ([{k: v for k, v in line.items() if k != "folder"} for line in trials_of(each)]
                for each in (found[0], other))  # fmt: skip
    assert one == two
    assert [row["after"] for row in other.rows] != [row["after"] for row in found[0].rows]


def test_ranks_above_the_budget_are_left_out(searching: Path, tmp_path: Path) -> None:
    changes: list[Any] = ["runs=[{method: lora}]", "seeds=[0]", "settings.epochs=1"]
    space = "search.space={learning_rate: {low: 1e-3, high: 1e-1}, rank: {low: 1, high: 64}}"
    largest = run(
        searching, tmp_path, overrides=[*changes, space, "search.parameters=1000"]
    )  # fmt: skip
    ranks = [int(line["rank"]) for line in trials_of(largest)]
    assert len(ranks) == 5 and max(ranks) <= 2, "a rank has 256 parameters here"
    with pytest.raises(UsageError, match=r"search.parameters: lora trains more than 10 "):
        run(searching, tmp_path, overrides=[*changes, space, "search.parameters=10"])


def test_all_trials_of_a_row_that_fail_are_its_failure(searching: Path, tmp_path: Path) -> None:
    overrides = [
        *("runs=[{method: head}, {method: full, space: {learning_rate: [1e30, 1e32]}}]",),
        *("seeds=[0]", "search.trials=2", RATES),
    ]
    result = run(searching, tmp_path, overrides=overrides)
    assert "diverged" in result.rows[-1]["failure"]
    assert [line["state"] for line in trials_of(result)][2:] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.validation=none"], "A search chooses by validation rows, and there are none"),
        (["search.space.target_modules=[all-linear, [qery]]"], "'qery' matches no module"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    searching: Path, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    for do in (run, dry_run):
        with pytest.raises(DeltafitError, match=sentence):
            do(searching, tmp_path / "store", overrides=overrides)  # type: ignore[operator]
    assert not (tmp_path / "store").exists()


def test_a_search_is_made_on_this_machine_by_processes_of_their_own(
    searching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="done by processes of this machine"):
        run(searching, tmp_path / "store", engine="ray")

    class Two:
        num_processes = 2

    monkeypatch.setattr("deltafit.experiments.tuning.launched", Two)
    with pytest.raises(UsageError, match="Start one process, and give --processes"):
        run(searching, tmp_path / "store")
    assert not (tmp_path / "store").exists()
