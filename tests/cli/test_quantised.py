"""``--base-weights`` from the command line: every command on a run whose base is quantised."""

import json
from pathlib import Path

import pytest

from tests.cli.commands import Tiny, done, refused


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_every_command_on_a_quantised_base(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    done("train", *tiny.start(run), "--rank", "2", "--lr", "0.01", "--base-weights", kind)
    assert json.loads((run / "adapter" / "deltafit.json").read_text())["base"]["weights"] == kind
    assert "canary logits agree to 0.0e+00" in " ".join(done("verify", run).split())
    (line,) = done("predict", run, "w1 w2").splitlines()
    assert json.loads(line)["text"] == "w1 w2"
    figures = json.loads(done("evaluate", run, "--data", tiny.test, "--json"))
    after = json.loads((run / "metrics.json").read_text())["after"]["test"]
    assert figures["accuracy"] == after["accuracy"]
    assert json.loads(done("inspect", run, "--json"))
    merge = ("merge", run, "--output", tmp_path / "merged")
    assert f"trained on base weights in {kind}" in refused(1, *merge, "--tolerance", "1e-4")
    said = " ".join(done(*merge, "--tolerance", "9").split())
    assert f"trained on base weights in {kind}, and merged into those in float32" in said
    assert "does not predict what the adapter does" in said
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_what_cannot_be_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    start = tiny.start(tmp_path / "run")
    said = refused(2, "train", *start, "--base-weights", "int3")
    assert "--base-weights must be one of float32, int8, nf4; got 'int3'" in said
    said = refused(2, "train", *start, "--method", "full", "--base-weights", "int8")
    assert "full trains the base's own weights, which --base-weights int8 stores in few" in said
    said = refused(2, "train", *start, "--method", "lora:initialisation=loftq")
    assert "in float32 they lose nothing. Add --base-weights nf4 or int8" in said
    said = refused(2, "compare", *start, "--base-weights", "nf4")
    assert "last-block trains the base's own weights" in said
    assert not (tmp_path / "run").exists()
