"""``merge``, ``truncate``, ``combine``, ``extract`` and their certificates on the command line."""

import json
import re
from pathlib import Path

import pytest

from deltafit.prediction.certificates import DEFAULT_TOLERANCE
from tests.cli.commands import Tiny, done, refused
from tests.cli.test_flags import options

pytestmark = pytest.mark.slow

PROOF = re.compile(r"16 canaries +(\d\S*) +(\d+)$", re.MULTILINE)
GIVEN = re.compile(r"20 of --data +(\d\S*) +(\d+)$", re.MULTILINE)


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_errors_of_all_ranks_are_shown_and_nothing_is_written(
    tiny: Tiny, tmp_path: Path
) -> None:
    text = done("truncate", tiny.run)
    line = next(line for line in text.splitlines() if line.startswith("all together"))
    found = json.loads(done("truncate", tiny.run / "adapter", "--json"))
    assert line.split()[2:] == [f"{found['overall'][rank]:.3f}" for rank in (1, 2)]
    assert found["overall"][0] == 1 and 0 < found["overall"][1] < 1 and found["overall"][2] == 0
    assert all(len(errors) == 3 for errors in found["matrices"].values())
    said = refused(2, "truncate", tiny.run, "--rank", "1", "--energy", "0.5")
    assert "--rank and --energy would do nothing. Add --output." in said


def test_truncate(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = done(
        "truncate", tiny.run, "--rank", "1", "--output", out, "--tolerance", "9",
        "--data", tiny.test,
    )  # fmt: skip
    kept = json.loads((out / "deltafit.json").read_text())["made"]["certificate"]
    for shown, part in ((PROOF, "canaries"), (GIVEN, "probe")):
        ((change, flipped),) = shown.findall(text)
        assert float(change) == pytest.approx(kept[part]["largest_change"], rel=0.05)
        assert int(flipped) == kept[part]["flipped"]
    assert f"Rank 1 in 6 matrices; {100 * kept['energy_lost']:.2f} % of" in one_line(text)
    assert "the canary logits agree" in one_line(done("verify", out))
    assert len(done("predict", out, "w1", "w2").splitlines()) == 2
    assert "rank=1" in one_line(done("inspect", out))
    assert "exists already" in refused(2, "truncate", tiny.run, "--rank", "1", "--output", out)
    twice = tmp_path / "twice"
    report = json.loads(done("truncate", tiny.run, "--energy", "1", "--output", twice, "--json"))
    assert report["folder"] == str(twice) and report["certificate"]["energy_lost"] < 1e-9


def test_combine(tiny: Tiny, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done("train", *tiny.start(other), "--rank", "2", "--lr", "0.01", "--seed", "1")
    out = tmp_path / "out"
    text = done("combine", tiny.run, other, "--weights", "0.25,0.75", "--output", out)
    assert f"Wrote {out}." in text and "Rank 4 in 6 matrices; nothing is lost." in text
    assert len(PROOF.findall(text)) == 3
    assert "the canary logits agree" in one_line(done("verify", out))
    sparse = ("--way", "ties", "--density", "0.5", "--energy", "0.9", "--tolerance", "99")
    report = json.loads(
        done("combine", tiny.run, other, *sparse, "--head", other, "--output", tmp_path / "t",
             "--json")
    )  # fmt: skip
    assert 0 < report["certificate"]["energy_lost"] <= 0.1 and len(report["from_each"]) == 2


def test_merge(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = done("merge", tiny.run, "--output", out, "--data", tiny.test)
    assert PROOF.search(text) and GIVEN.search(text) and f"Wrote {out}." in text
    report = json.loads(done("merge", tiny.run, "--output", tmp_path / "again", "--json"))
    assert report["certificate"]["canaries"]["largest_change"] < 1e-5
    kept = json.loads((tmp_path / "again" / "certificate.json").read_text())
    assert kept["certificate"] == report["certificate"]


def test_extract_makes_a_lora_of_a_merged_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    done("merge", tiny.run, "--output", tmp_path / "plain")
    out = tmp_path / "out"
    text = one_line(
        done(
            "extract", tmp_path / "plain", "--base", tiny.model, "--rank", "2", "--output", out,
            "--json",
        )
    )  # fmt: skip
    report = json.loads(text)
    assert report["certificate"]["canaries"]["largest_change"] < 1e-3 and not report["left_out"]
    assert "the canary logits agree" in one_line(done("verify", out))
    again = tmp_path / "again"
    text = done("extract", tiny.run, "--energy", "0.99", "--output", again, "--tolerance", "9")
    assert PROOF.search(text)
    whole = tmp_path / "whole"
    text = done("extract", tiny.run, "--dense", "--output", whole, "--tolerance", "1e-4")
    assert "Rank 32 in 6 matrices; nothing is lost." in text and PROOF.search(text)
    assert "the canary logits agree" in one_line(done("verify", whole))
    assert "density=1" in one_line(done("inspect", whole))
    said = refused(2, "extract", tmp_path / "plain", "--rank", "2", "--output", tmp_path / "x")
    assert "is a checkpoint" in said and "--base" in said


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (1, ["truncate", "RUN", "--rank", "1", "--tolerance", "0"], "allow it with --tolerance"),
        (1, ["merge", "RUN", "--tolerance", "0"], "Allow it with --tolerance"),
        (2, ["merge", "RUN", "--tolerance", "nan"], "--tolerance must be a number of at least 0"),
        (2, ["merge", "RUN", "--text-column", "x"], "--text-column is a column of data"),
        (1, ["merge", "RUN", "--data", "gone.csv"], "gone.csv"),
        (2, ["truncate", "RUN"], "--rank, a whole number, or energy"),
        (2, ["truncate", "RUN", "--energy", "2"], "--energy must be above 0"),
        (2, ["truncate", "RUN", "--rank", "0"], "--rank"),
        (2, ["truncate", "RUN", "--rank", "1", "--tolerance", "-1"], "--tolerance must be"),
        (2, ["truncate", "RUN", "--rank", "1", "--text-column", "x"], "--text-column is a column"),
        (1, ["truncate", "RUN", "--rank", "1", "--data", "gone.csv"], "gone.csv"),
        (2, ["combine", "RUN", "--weights", "one"], "--weights takes numbers with commas"),
        (2, ["combine", "RUN", "--weights", "1,2"], "--weights must be one for each adapter"),
        (2, ["combine", "RUN", "--way", "mean"], "--way must be one of linear, svd, ties, dare"),
        (2, ["combine", "RUN", "--way", "ties"], "--density, the share of values"),
        (2, ["combine", "RUN", "--rank", "2"], "not for linear"),
        (2, ["combine", "RUN", "--head", "best"], "--head must be average or one of the folders"),
        (2, ["combine"], "RUN"),
        (1, ["combine", "RUN", "gone"], "gone"),
        (2, ["extract", "RUN"], "--rank, a whole number, or energy"),
        (2, ["extract", "RUN", "--dense", "--energy", "0.9"], "--dense keeps each ΔW whole"),
        (1, ["extract", "no/such/model", "--rank", "2"], "no/such/model"),
    ],
)
def test_what_is_wrong_is_said_by_its_flag_and_leaves_nothing(
    tiny: Tiny, tmp_path: Path, code: int, words: list[str], said: str
) -> None:
    given = [str(tiny.run) if word == "RUN" else word for word in words]
    assert said in refused(code, *given, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_tolerance_is_the_functions() -> None:
    for command in ("merge", "truncate", "combine", "extract"):
        assert options(command)["--tolerance"].default == DEFAULT_TOLERANCE
