"""``deltafit ranks``: the curve, the parts and the advice in a terminal, and its refusals."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.commands import WIDTH, Tiny, done, refused

pytestmark = pytest.mark.slow


def test_ranks_shows_every_rank_and_what_to_do(tiny: Tiny, tmp_path: Path) -> None:
    text = done("ranks", tiny.run, "--data", tiny.test, "--output", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "ranks.json").read_text(encoding="utf-8"))
    assert content["verdict"] in text and content["about_parts"] in text
    assert f"Report: {tmp_path / 'out' / 'report.md'}" in text
    for row in content["ranks"]:
        (line,) = [line for line in text.splitlines() if re.match(rf" *{row['rank']}  ", line)]
        figures = (row["accuracy"], row["accuracy_low"], row["accuracy_high"])
        assert "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * figure for figure in figures)) in line
        assert line.rstrip().endswith(row["standing"])
    tables = [line for line in text.splitlines() if re.match(r" {0,3}\d|block|query|value", line)]
    assert tables and all(len(line.rstrip()) <= WIDTH for line in tables)
    evaluated = json.loads(done("evaluate", tiny.run, "--data", tiny.test, "--json"))
    assert content["ranks"][-1]["accuracy"] == evaluated["accuracy"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["parts.csv", "plots", "ranks.csv", "ranks.json", "report.md"]


def test_ranks_as_json_and_the_command_that_it_names(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done("truncate", tiny.run, "--rank", "2", "--tolerance", "9", "--output", folder)
    words = ("ranks", folder, "--data", tiny.train, "--matrices", "--json")
    found = json.loads(done(*words))
    assert {part["kind"] for part in found["parts"]} == {"block", "matrix type", "matrix"}
    assert len(found["matrices"]) == 6 and found["count"] == 45
    named = re.search(r"deltafit (truncate .*)", found["verdict"])
    if named:
        done(*shlex.split(named[1]))
        assert Path(f"{folder}-rank{found['smallest_within_noise']}").is_dir()


def test_what_ranks_cannot_use_is_a_sentence(tiny: Tiny, tmp_path: Path) -> None:
    start = tiny.start(tmp_path / "head")
    done("train", *start, "--method", "head")
    said = refused(1, "ranks", tmp_path / "head", "--data", tiny.test)
    assert "holds an adapter of the method head" in said
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nw1 w2\n")
    assert "label" in refused(1, "ranks", tiny.run, "--data", texts)
    assert "--data" in refused(2, "ranks", tiny.run)
    assert "gone.csv" in refused(1, "ranks", tiny.run, "--data", "gone.csv")
    said = refused(2, "ranks", tiny.run, "--data", tiny.test, "--output", tmp_path / "head")
    assert "exists already" in said
    assert "There is no folder" in refused(1, "ranks", tmp_path / "gone", "--data", tiny.test)
