"""``deltafit estimate`` and ``deltafit plan``: what they print, and what is told of wrong input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deltafit.cli.plan import _bytes
from deltafit.methods import Head
from deltafit.training.config import RunConfig
from deltafit.training.cost_law import CostLaw
from deltafit.training.trial import Trial
from tests.cli.commands import done, refused
from tests.experiments.recipes import tiny_recipe
from tests.training.tiny_runs import save_model, write_table


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.mark.slow
def test_an_estimate(recipe: Path) -> None:
    words = ("estimate", recipe, "--set", "runs=[{method: lora}]")
    text = done(*words)
    assert "tiny-" in text and "B at most" in text and "2 runs one after another" in text
    assert "From 10 timed steps of each kind of run" in text
    content = json.loads(done(*words, "--json"))
    (row,) = content["rows"]
    assert row["runs"] == 2 and row["whole"]["low"] <= row["whole"]["seconds"]
    wrong = recipe.with_name("wrong.yaml")
    wrong.write_text(recipe.read_text().replace("epochs: 2", "epoch: 2"))
    assert f"{wrong}, line 8: settings.epoch" in refused(2, "estimate", wrong)


@pytest.mark.slow
def test_a_plan(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), write_table(tmp_path / "data.csv")
    words = (
        "plan", "--model", model, "--data", data, "--method", "head", "--lengths", "4,16",
        "--batch-size", "4", "--epochs", "1", "--ram", "64GB",
    )  # fmt: skip
    text = done(*words, "--minutes", "5")
    assert "Fits into 64.0 GB of memory and 5.0 min, the best first" in text
    assert "nothing here knows how well they learn" in " ".join(text.split())
    assert "Does not fit" not in text
    content = json.loads(done(*words, "--minutes", "0.001", "--json"))
    assert [each["exceeded"] for each in content["others"]] == [["time"], ["time"]]
    assert content["others"][0]["method"] == "head" and content["fitting"] == []


@pytest.mark.parametrize("known", [True, False])
def test_a_row_that_could_not_be_tried_counts_as_unknown(
    recipe: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = CostLaw((1.0, 0.0, 0.0))
    tried = Trial(
        {"train": [5] * 36, "validation": [5] * 9}, 99, 999, {},
        peak=10**8, steps=second, timed=10, evaluating=second,
    )  # fmt: skip

    def call(_: object, config: RunConfig) -> Trial:
        if known and not isinstance(config.method, Head):
            return tried
        return replace(tried, peak=None, timed=0, problem="It is too large.")

    monkeypatch.setattr("deltafit.experiments.estimate.in_own_process", call)
    text = " ".join(done("estimate", recipe).split())
    untried = 1 if known else 3
    assert f"one after another: not known, since {untried} of 3 rows could not be tried." in text
    assert "head: It is too large. Its memory is foretold." in text
    assert ("From 10 timed steps of each kind of run that could be tried" in text) == known
    assert ("timed steps" in text) == ("A run of r=2" in text) == known
    content = json.loads(done("estimate", recipe, "--json"))
    head, other, _ = content["rows"]
    assert (head["whole"], head["training"], content["whole"]) == (None, None, None)
    assert (content["baselines"] is not None) == (other["whole"] is not None) == known


def test_wrong_limits_are_told(tmp_path: Path) -> None:
    words = ("plan", "--model", "minilm", "--data", write_table(tmp_path / "data.csv"))
    for limit, said in (
        (("--ram", "8PB"), "Its units are B, kB, MB"),
        (("--ram", "lots"), "--ram takes a size such as 8GB"),
        (("--ram", "8"), "--ram 8 has no unit. Write 8GB"),
        (("--ram", "0GB"), "--ram must be above 0"),
        (("--minutes", "0"), "--minutes must be above 0"),
        (("--minutes", "nan"), "--minutes must be above 0"),
        ((), "Give --ram, --minutes, or both"),
        (("--minutes", "1", "--ranks", "4,x"), "--ranks takes whole numbers with commas"),
        (("--minutes", "1", "--max-length", "9", "--lengths", "8"), "--max-length or --lengths"),
    ):
        assert said in refused(2, *words, *limit)


def test_units() -> None:
    assert _bytes("8GB") == _bytes("8 gb") == 8 * 10**9
    assert _bytes("0.5GiB") == 2**29 and _bytes("500MB") == 5 * 10**8
