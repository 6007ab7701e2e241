"""``deltafit compare``: which runs its flags ask for, one table, going on after a stop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.comparison import DEFAULT_METHODS
from deltafit.experiments.tables import format_count, format_metric
from deltafit.files import read_json
from tests.cli.commands import WIDTH, Tiny, deltafit, done, refused

pytestmark = pytest.mark.slow

METHODS = ("--methods", "head", "--method", "lora:rank=2")


@pytest.fixture(scope="module", autouse=True)
def _no_images() -> Iterator[None]:
    """Plots take most of the time; the tests of reports have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
        yield


@pytest.fixture(scope="module")
def compared(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("compare") / "out"
    return folder, done("compare", *tiny.start(folder), *METHODS, "--seeds", "0,1")


def test_every_method_with_every_seed(compared: tuple[Path, str]) -> None:
    runs = {path.name for path in (compared[0] / "runs").iterdir()}
    names = ("head", "lora_rank=2")
    assert runs == {f"{name}-seed{seed}" for name in names for seed in (0, 1)}
    assert {path.name for path in compared[0].iterdir()} == {
        *(
            "run.json",
            "runs",
            "plots",
            "report.html",
            "report.md",
            "comparison.csv",
            "comparison.json",
            "left_out.json",
        ),
    }


def test_the_table_shows_every_figure_and_cuts_none(compared: tuple[Path, str]) -> None:
    folder, text = compared
    content = read_json(folder / "comparison.json")
    lines = text.splitlines()
    assert content["verdict"] in text and str(folder / "report.html") in text
    table = lines[: next(i for i, line in enumerate(lines) if line in content["verdict"])]
    assert max(map(len, table)) <= WIDTH and "…" not in text
    for row in content["rows"]:
        for figure in (
            format_metric(row["after"], "accuracy"),
            format_metric(row["macro_f1"], "macro_f1"),
            *([format_count(row["trainable"])] if row["trainable"] else []),
        ):
            assert figure in text, (row["name"], figure)
    # Names fold where the measured times and memory leave them little room.
    top = next(i for i, line in enumerate(table) if line.startswith("method  "))
    width = len(table[top]) - len(table[top].removeprefix("method").lstrip())
    names = " ".join(" ".join(line[:width] for line in table[top:]).split())
    for name in ("majority class", "TF-IDF + linear", "frozen features", "(2 seeds)"):
        assert name in names
    assert "best" in text


def test_a_long_name_folds_and_the_figures_stay_in_columns(tiny: Tiny, tmp_path: Path) -> None:
    method = "lora:target_modules=query+key+value,rank=2"
    text = done("compare", *tiny.start(tmp_path / "out"), "--method", method)
    lines = text.splitlines()
    assert any(line.startswith("method  ") for line in lines) and "…" not in text
    assert not any("accuracy % " in line and ";" in line for line in lines), "no running text"


def test_going_on_keeps_finished_runs(tiny: Tiny, compared: tuple[Path, str]) -> None:
    folder, before = compared
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/metrics.json")}
    words = [*tiny.start(folder), *METHODS, "--seeds", "0,1"]
    assert "exists already" in refused(2, "compare", *words)
    (folder / "report.md").unlink()
    again = deltafit("compare", *words, "--resume")
    assert again.exit_code == 0 and (folder / "report.md").is_file()
    assert "training:" not in again.stderr
    assert before.splitlines()[-2:] == again.stdout.splitlines()[-2:]
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_runs_that_are_trained_jointly_say_so(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = [*tiny.start(folder), *METHODS, "--seeds", "0,1", "--jointly"]
    text = done("compare", *words)
    assert "lora:rank=2: trained jointly with others: its time is its share" in text
    assert "head: trained jointly" not in text
    for seed in (0, 1):
        run = folder / "runs" / f"lora_rank=2-seed{seed}"
        assert read_json(run / "metrics.json")["joined"] == 2
        assert '"label"' in done("predict", run, "w3 w9")
        assert "canar" in done("verify", run)


def test_defaults(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def record(*words: object, **named: Any) -> None:
        given.append(named)
        raise KeyboardInterrupt

    monkeypatch.setattr("deltafit.experiments.comparison.compare", record)
    refused(130, "compare", *tiny.start(tmp_path / "out"), "--seed", "7")
    assert given[0]["methods"] == DEFAULT_METHODS and list(given[0]["seeds"]) == [7]
    assert given[0]["resume"] is given[0]["jointly"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "head,lora,head"], "The method head is given twice"),
        (["--methods", "lora", "--method", "lora:rank=8"], "The method lora is given twice"),
        (["--seeds", "1,2,1"], "The seed 1 is given twice"),
        (["--seeds", "one"], "whole numbers with commas; got 'one'"),
        (["--seeds", "0,-1"], "whole numbers with commas; got '0,-1'"),
        (["--seeds", "0,1", "--seed", "0"], "Give --seed or --seeds, not both"),
        (["--method", "lora:rank=0"], "rank must be a whole number"),
        (["--seeds", ""], "whole numbers with commas; got ''"),
        (["--methods", ","], "--methods takes names"),
        (["--methods", "lora:rank=4,alpha=8"], "--method lora:rank=4,alpha=8"),
        (["--methods", "loar"], "Did you mean 'lora'?"),
        (["--methods", "head,lora", "--jointly"], "--jointly finds nothing to train jointly"),
    ],
)
def test_wrong_usage_is_2(tiny: Tiny, tmp_path: Path, words: list[str], said: str) -> None:
    assert said in refused(2, "compare", *tiny.start(tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_nothing_but_failures_is_a_failure(tiny: Tiny, tmp_path: Path) -> None:
    result = deltafit("compare", *tiny.start(tmp_path / "out"), "--methods", "head", "--lr", "1e20")
    assert result.exit_code == 1
    assert "diverged at step" in result.stdout and "TF-IDF" in result.stdout
    assert "Every method failed" in result.stderr
